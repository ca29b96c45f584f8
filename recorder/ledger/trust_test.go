package ledger_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/hybrid"
	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

func trust(t testing.TB, keys ...string) *ledger.Trust {
	t.Helper()
	l, err := ledger.ParseTrust(strings.Join(keys, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// forger makes a gateway's whole history anew: who may write the vault and
// knows the program can make all of it fit, but for the keys.
type forger struct {
	// change alters a segment's frames before all is hashed again.
	change func(name string, f []record.Frame) []record.Frame
	// resign signs checkpoints with keys of the forger's own.
	resign bool
	// named puts these keys into the open records.
	named bool
	// certificate gives the certificate of an open record, from the old one.
	certificate func(c record.Certificate, old string) string
	// statement alters what checkpoints state.
	statement func(s *record.Statement)
}

func (o forger) forge(x tamperer, gateway string) {
	var end *record.EpochEnd
	epochs := map[record.Epoch]bool{}
	for _, first := range x.v.Names("segments/") {
		n, err := vault.ParseSegmentName(first)
		if err != nil {
			x.t.Fatal(err)
		}
		if n.Gateway != gateway || epochs[n.Epoch] {
			continue
		}
		epochs[n.Epoch] = true
		key, err := record.NewEpochKey(gateway, n.Epoch, nil)
		if err != nil {
			x.t.Fatal(err)
		}
		head, tree := record.NewChain(n.Epoch, gateway), record.Tree{}
		for _, name := range x.v.Names("segments/") {
			if !strings.Contains(name, n.Epoch.String()) {
				continue
			}
			x.edit(name, func(h *vault.Header, frames []record.Frame) []record.Frame {
				if o.change != nil {
					frames = o.change(name, frames)
				}
				h.Head = head
				for i := range frames {
					f := &frames[i]
					if f.Kind == record.KindCheckpoint {
						f.Body = o.checkpoint(x, f, head, tree, key)
						continue
					}
					if f.Kind == record.KindOpen {
						o.open(x, f, end, key, n.Epoch)
					}
					if _, err := f.Encode(nil); err != nil {
						x.t.Fatal(err)
					}
					if f.Kind == record.KindOpen {
						x.v.Files[vault.EpochName(gateway, n.Epoch)] = bytes.Clone(f.Raw())
					}
					head = head.Next(f.Leaf())
					tree.Add(f.Leaf())
				}
				return frames
			})
		}
		root := tree.Root()
		end = &record.EpochEnd{Head: hex.EncodeToString(head[:]), Root: hex.EncodeToString(root[:])}
	}
}

func (o forger) open(x tamperer, f *record.Frame, end *record.EpochEnd, key *record.EpochKey, e record.Epoch) {
	var body record.Open
	if err := record.Unmarshal(f.Body, &body); err != nil {
		x.t.Fatal(err)
	}
	if body.Previous != nil && end != nil {
		body.Previous.Head, body.Previous.Root = end.Head, end.Root
	}
	if o.named {
		body.Key = key.Public()
	}
	if o.certificate != nil {
		body.Certificate = o.certificate(record.Certificate{Gateway: body.Gateway, Epoch: e, Key: body.Key, Opened: body.Opened}, body.Certificate)
	}
	var err error
	if f.Body, err = record.Marshal(body); err != nil {
		x.t.Fatal(err)
	}
}

func (o forger) checkpoint(x tamperer, f *record.Frame, head record.ChainHead, tree record.Tree, key *record.EpochKey) []byte {
	s, err := record.Stated(f)
	if err != nil {
		x.t.Fatal(err)
	}
	s.Head, s.Root = head, tree.Root()
	if o.statement != nil {
		o.statement(&s)
	}
	c, err := record.Checkpoint(s, key.Signer(), false)
	if err != nil {
		x.t.Fatal(err)
	}
	if o.resign {
		return c.Body
	}
	_, signature, _ := bytes.Cut(f.Body, []byte("\n\n"))
	text, _, _ := bytes.Cut(c.Body, []byte("\n\n"))
	return append(append(text, "\n\n"...), signature...)
}

// swapSQL replaces one caller's record by another of the forger's making.
func swapSQL(_ string, f []record.Frame) []record.Frame {
	for i := range f {
		if f[i].Kind == record.KindIntent && f[i].Sequence < 10 {
			f[i].Body[20] ^= 1
		}
	}
	return f
}

func clock(t time.Time) func() time.Time { return func() time.Time { return t } }

func certify(s note.Signer) func(record.Certificate, string) string {
	return func(c record.Certificate, _ string) string {
		signed, err := c.Certify(s)
		if err != nil {
			panic(err)
		}
		return signed
	}
}

// kept are heads as an earlier verification prints them.
func kept(t *testing.T, v ledger.Vault) []ledger.Head {
	t.Helper()
	b, err := json.Marshal(verifyWith(t, v, nil, ledger.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	heads, err := ledger.ParseHeads(b)
	if err != nil {
		t.Fatal(err)
	}
	return heads
}

func TestForged(t *testing.T) {
	own, ownKey := ledgertest.Deployment("deployment") // the same name, another key
	soon := ledgertest.Start.Add(23 * time.Hour)
	drop := func(prefix string) func(x tamperer) {
		return func(x tamperer) {
			for _, name := range x.v.Names(prefix) {
				delete(x.v.Files, name)
			}
		}
	}
	// dropTail leaves the first two segments of gw-1's first epoch.
	dropTail := func(x tamperer) {
		drop("segments/dt=2026-03-15/")(x)
		for _, name := range x.v.Names("segments/dt=2026-03-14/gw-1/")[2:] {
			delete(x.v.Files, name)
		}
	}
	forge := func(o forger) func(x tamperer) { return func(x tamperer) { o.forge(x, "gw-1") } }
	full, g, _ := gateways()
	last := record.ID{Epoch: g.Epoch, Sequence: 2} // of the last epoch
	receipt := g.Receipt(last)
	if receipt.ID != last {
		t.Fatal("no receipt")
	}
	crashed, err := vault.ParseSegmentName(full.Names("segments/dt=2026-03-14/gw-1/")[0])
	if err != nil {
		t.Fatal(err)
	}
	early := g.Receipt(record.ID{Epoch: crashed.Epoch, Sequence: 2}) // the first exchange of all
	note1 := func(epoch int) []ledger.Head {
		heads := kept(t, full)
		h, err := ledger.ParseHeads([]byte(heads[epoch].Checkpoint))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	anchored := ledger.Options{Trust: trust(t, deploymentKey)}
	with := ledger.Options{Trust: anchored.Trust, Checkpoints: kept(t, full), Receipts: []record.Receipt{early, receipt}, Now: clock(soon),
		Gateways: []ledger.Expected{{Name: "gw-1", Silence: 24 * time.Hour}, {Name: "gw-2"}}}
	tests := []struct {
		name    string
		options ledger.Options
		keyed   bool
		code    ledger.Code
		gateway string
		text    string
		// unseen: without any anchor it is not found, and the report says that
		// it is unanchored.
		unseen bool
		do     func(x tamperer)
	}{
		{name: "hashed again, signatures left", code: ledger.SignatureWrong, text: "not signed with the epoch's key", do: forge(forger{change: swapSQL})},
		{name: "hashed and signed again with another key", code: ledger.SignatureWrong, do: forge(forger{change: swapSQL, resign: true})},
		{name: "signed again with a named key, certificate left", options: anchored, code: ledger.CertificateWrong, text: "something else", unseen: true,
			do: forge(forger{change: swapSQL, resign: true, named: true})},
		{name: "signed again with a named key, certificate dropped", options: anchored, code: ledger.CertificateMissing, unseen: true,
			do: forge(forger{change: swapSQL, resign: true, named: true, certificate: func(record.Certificate, string) string { return "" }})},
		{name: "own deployment key", options: anchored, code: ledger.CertificateWrong, text: "no trusted deployment key", unseen: true,
			do: forge(forger{change: swapSQL, resign: true, named: true, certificate: certify(own)})},
		{name: "certificate that is no note", options: anchored, code: ledger.CertificateWrong, unseen: true,
			do: forge(forger{resign: true, named: true, certificate: func(record.Certificate, string) string { return "trust me" }})},
		{name: "certificates of two epochs swapped", options: anchored, code: ledger.CertificateWrong, text: "something else", unseen: true, do: func(x tamperer) {
			var certificates []string
			forger{certificate: func(_ record.Certificate, old string) string {
				certificates = append(certificates, old)
				return old
			}}.forge(tamperer{x.t, x.v.Clone()}, "gw-1")
			forger{resign: true, named: true, certificate: func(record.Certificate, string) string {
				c := certificates[len(certificates)-1]
				certificates = certificates[:len(certificates)-1]
				return c
			}}.forge(x, "gw-1")
		}},
		{name: "key of a certificate kept, checkpoints signed with another", options: anchored, code: ledger.SignatureWrong,
			do: forge(forger{change: swapSQL, resign: true})},
		{name: "key that is none", code: ledger.SignerWrong, do: func(x tamperer) {
			x.later(x.first(), cite(func(o *record.Open) { o.Key = "key" }))
		}},
		{name: "key of another epoch", code: ledger.SignerWrong, text: "the epoch is", do: func(x tamperer) {
			x.later(x.first(), cite(func(o *record.Open) { o.Key = attacker.Public() }))
		}},
		{name: "certified by a retired key", options: ledger.Options{Trust: trust(t, deploymentKey+" retired 2026-03-14T12:00:00Z")}, code: ledger.CertificateWrong, text: "retired", unseen: true, do: func(tamperer) {}},
		{name: "certified by a key of later", options: ledger.Options{Trust: trust(t, deploymentKey+" from 2026-04-14T12:00:00Z")}, code: ledger.CertificateWrong, unseen: true, do: func(tamperer) {}},
		{name: "certified by another key", options: ledger.Options{Trust: trust(t, ownKey)}, code: ledger.CertificateWrong, do: func(tamperer) {}},
		{name: "old checkpoint replayed", code: ledger.ChainWrong, text: "in a frame of sequence", do: func(x tamperer) {
			x.edit(x.first(), func(_ *vault.Header, f []record.Frame) []record.Frame {
				f[at(f, record.KindCheckpoint, 2)].Body = f[at(f, record.KindCheckpoint, 0)].Body
				return f
			})
		}},
		{name: "old checkpoint replayed, whole", code: ledger.SequenceWrong, text: "a checkpoint for record", do: func(x tamperer) {
			x.edit(x.first(), func(_ *vault.Header, f []record.Frame) []record.Frame {
				f[at(f, record.KindCheckpoint, 2)] = f[at(f, record.KindCheckpoint, 0)]
				return f
			})
		}},
		{name: "checkpoint of another gateway", code: ledger.OriginWrong, do: forge(forger{statement: func(s *record.Statement) { s.Gateway = "gw-2" }})},
		{name: "checkpoint of another epoch", code: ledger.OriginWrong, do: forge(forger{resign: true, named: true, statement: func(s *record.Statement) { s.Epoch[3] ^= 1 }})},
		{name: "root of another tree", code: ledger.RootWrong, do: forge(forger{resign: true, named: true, statement: func(s *record.Statement) { s.Root[0] ^= 1 }})},
		{name: "checkpoint's time moved", code: ledger.SignatureWrong, do: forge(forger{statement: func(s *record.Statement) { s.Time = s.Time.Add(time.Hour) }})},
		{name: "root of the epoch before changed in its citation", code: ledger.EpochWrong, text: "cites the root", do: func(x tamperer) {
			x.later(x.segment("2026-03-15", "gw-1", 0), cite(func(o *record.Open) { o.Previous.Root = strings.Repeat("0", 64) }))
		}},
		{name: "all rewritten, with a kept report", options: ledger.Options{Checkpoints: kept(t, full)}, code: ledger.Forked, text: "not the ones that were there", unseen: true,
			do: forge(forger{change: swapSQL, resign: true, named: true, certificate: certify(own)})},
		{name: "all rewritten, with a kept note", options: ledger.Options{Checkpoints: note1(0)}, code: ledger.Forked, text: "not the ones that were there", unseen: true,
			do: forge(forger{change: swapSQL, resign: true, named: true})},
		{name: "only the keys are others, with a kept note", options: ledger.Options{Checkpoints: note1(2)}, code: ledger.Forked, text: "somebody else", unseen: true,
			do: forge(forger{resign: true, named: true})},
		{name: "last epoch dropped, with a kept report", options: ledger.Options{Checkpoints: kept(t, full)}, code: ledger.RolledBack, text: "not in the vault", unseen: true,
			do: drop(ledgerOf(g))},
		{name: "last epoch dropped, with a receipt", options: ledger.Options{Receipts: []record.Receipt{receipt}}, code: ledger.ReceiptUnproven, unseen: true, do: drop(ledgerOf(g))},
		{name: "tail dropped, with a kept report", options: ledger.Options{Checkpoints: kept(t, full)}, code: ledger.RolledBack, text: "the epoch ends here", unseen: true, do: dropTail},
		{name: "tail dropped, with a kept note", options: ledger.Options{Checkpoints: note1(0)}, code: ledger.RolledBack, text: "the epoch ends here", unseen: true, do: dropTail},
		{name: "segments, checkpoints and epochs rolled back together", options: ledger.Options{Trust: anchored.Trust, Checkpoints: kept(t, full)}, code: ledger.RolledBack, unseen: true,
			do: drop("segments/dt=2026-03-15/gw-1/")},
		{name: "the same, with a receipt of the epoch", options: ledger.Options{Receipts: []record.Receipt{g.Receipt(record.ID{Epoch: crashed.Epoch, Sequence: 22})}}, code: ledger.Omitted, unseen: true,
			do: dropTail},
		{name: "record replaced, with its receipt", options: ledger.Options{Receipts: []record.Receipt{early}}, code: ledger.ReceiptForged, text: "or the vault's epoch is", unseen: true,
			do: forge(forger{change: swapSQL, resign: true, named: true})},
		{name: "record replaced, key kept, with its receipt", options: ledger.Options{Receipts: []record.Receipt{early}}, code: ledger.Replaced, do: forge(forger{change: func(_ string, f []record.Frame) []record.Frame {
			for i := range f {
				if f[i].Sequence == 2 {
					f[i].Time = f[i].Time.Add(1)
				}
			}
			return f
		}})},
		{name: "receipt of nobody's making", options: ledger.Options{Receipts: []record.Receipt{attacker.Receipt(last, receipt.Leaf)}}, code: ledger.ReceiptForged, unseen: true, do: func(tamperer) {}},
		{name: "receipt of another exchange", options: ledger.Options{Receipts: []record.Receipt{{ID: record.ID{Epoch: last.Epoch, Sequence: 3}, Leaf: receipt.Leaf, Signature: receipt.Signature}}}, code: ledger.ReceiptForged, unseen: true, do: func(tamperer) {}},
		{name: "gateway dropped, with the register", options: with, code: ledger.GatewaySilent, gateway: "gw-2", text: "no record of it", unseen: true, do: drop("segments/dt=2026-03-14/gw-2/")},
		{name: "gateway dropped, with a kept report", options: ledger.Options{Checkpoints: kept(t, full)}, code: ledger.RolledBack, gateway: "gw-2", unseen: true, do: drop("segments/dt=2026-03-14/gw-2/")},
		{name: "gateway silent, with the register", options: ledger.Options{Gateways: with.Gateways, Now: clock(soon.Add(24 * time.Hour))}, code: ledger.GatewaySilent, gateway: "gw-1", text: "recorded nothing since", unseen: true, do: func(x tamperer) {
			drop("segments/dt=2026-03-15/gw-1/")(x)
		}},
		{name: "gateway that nobody runs, with the register", options: with, code: ledger.GatewayUnknown, gateway: "gw-9", unseen: true, do: fake},
		{name: "gateway that nobody runs, with trust", options: anchored, code: ledger.CertificateMissing, gateway: "gw-9", unseen: true, do: fake},
		{name: "all records backdated, with trust", options: anchored, code: ledger.CertificateWrong, unseen: true, do: forge(forger{resign: true, named: true, change: func(_ string, f []record.Frame) []record.Frame {
			for i := range f {
				f[i].Time = f[i].Time.Add(-time.Minute)
			}
			return f
		}, statement: func(s *record.Statement) { s.Time = s.Time.Add(-time.Minute) }})},
		{name: "records backdated, signatures left", code: ledger.SignatureWrong, do: forge(forger{change: func(_ string, f []record.Frame) []record.Frame {
			for i := range f {
				f[i].Time = f[i].Time.Add(-time.Minute)
			}
			return f
		}})},
		{name: "expiry and class changed, all hashed again", code: ledger.SignatureWrong, do: forge(forger{change: func(_ string, f []record.Frame) []record.Frame {
			for i := range f {
				if f[i].Kind == record.KindOutcome {
					f[i].Expiry, f[i].Class = f[i].Expiry.AddDate(-1, 0, 0), "short"
				}
			}
			return f
		}})},
		{name: "key wrapped anew over another data key", keyed: true, code: ledger.BodyWrong, text: "does not open", unseen: true, do: func(x tamperer) {
			name := x.v.Names("keys/")[0]
			e, id, err := vault.ParseKeyName(name)
			if err != nil {
				x.t.Fatal(err)
			}
			wrap, err := hybrid.NewHybridEncrypt(public)
			if err != nil {
				x.t.Fatal(err)
			}
			raw := make([]byte, 32)
			rand.Read(raw)
			info := append(append([]byte("verbatim/key/1"), e[:]...), id[:]...)
			body, err := wrap.Encrypt(raw, info)
			if err != nil {
				x.t.Fatal(err)
			}
			f := record.Frame{Kind: record.KindKey, Key: id, Time: ledgertest.Start, Body: body}
			if x.v.Files[name], err = f.Encode(nil); err != nil {
				x.t.Fatal(err)
			}
		}},
	}
	t.Run("untampered", func(t *testing.T) {
		r := verifyWith(t, full, tenant, with)
		if !r.Sound || len(r.Notices) > 0 || !r.Anchored || r.Certified != 4 || r.Kept != 4 || r.Checkpoints == 0 || r.Verdict != ledger.Pending {
			t.Errorf("%+v", r)
		}
		for _, x := range r.Receipts {
			if x.State != "recorded" || x.Segment == "" {
				t.Errorf("receipt %+v", x)
			}
		}
	})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := full.Clone()
			tt.do(tamperer{t, v})
			keys := tenant
			if !tt.keyed {
				keys = nil
			}
			r := verifyWith(t, v, keys, tt.options)
			if r.Sound || r.Verdict != ledger.Tampered {
				t.Fatalf("nothing was found: %s", r.Verdict)
			}
			found := false
			for _, f := range r.Findings {
				found = found || f.Code == tt.code && strings.Contains(f.Message, tt.text) && (tt.gateway == "" || f.Gateway == tt.gateway)
			}
			if !found {
				t.Errorf("want %s, %q; found:", tt.code, tt.text)
				for _, f := range r.Findings {
					t.Errorf("  %s: %s", f.Code, f)
				}
			}
			if tt.unseen {
				if r := verifyWith(t, v, nil, ledger.Options{}); !r.Sound || r.Anchored {
					t.Errorf("without an anchor: %v", r.Findings)
				}
			}
		})
	}
}

func ledgerOf(g *ledgertest.Gateway) string {
	return vault.SegmentPrefix("2026-03-15", g.Name, g.Epoch)
}

// fake adds a gateway of the attacker's own.
func fake(x tamperer) {
	g := ledgertest.NewGateway(x.v, "gw-9", public)
	g.Begin()
	g.Run(query(1))
	g.Close()
}

// TestClockStep holds that a clock that was set back is told, and is no
// tampering.
func TestClockStep(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Deployment = deployment
	g.Begin()
	g.Run(query(1))
	g.Crash()
	g.Now = g.Now.Add(-time.Hour)
	g.Begin()
	g.Heartbeat()
	g.Cut()
	r := verifyWith(t, v, nil, ledger.Options{Trust: trust(t, deploymentKey)})
	if !r.Sound || len(r.Notices) != 1 || r.Notices[0].Code != ledger.ClockStep || !strings.Contains(r.Notices[0].Message, "set back") {
		t.Errorf("findings %v, notices %v", r.Findings, r.Notices)
	}
}

// TestSilence holds that a gap in the past is told, and is no tampering.
func TestSilence(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	g.Now = g.Now.Add(time.Hour)
	g.Heartbeat()
	g.Cut()
	o := ledger.Options{Gateways: []ledger.Expected{{Name: "gw-1", Silence: time.Minute}}, Now: clock(g.Now)}
	r := verifyWith(t, v, nil, o)
	if !r.Sound || len(r.Notices) != 1 || r.Notices[0].Code != ledger.GatewaySilent || r.Notices[0].Sequence != 2 {
		t.Errorf("findings %v, notices %v", r.Findings, r.Notices)
	}
	o.Now = clock(g.Now.Add(2 * time.Minute))
	if r := verifyWith(t, v, nil, o); r.Sound || r.Findings[0].Code != ledger.GatewaySilent {
		t.Errorf("findings %v", r.Findings)
	}
}

// TestFirstSignature holds that of many wrong signatures the first is named,
// however many look at them at once.
func TestFirstSignature(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	for range 400 {
		g.Heartbeat()
	}
	g.Cut()
	x := tamperer{t, v}
	x.edit(v.Names("segments/")[0], func(_ *vault.Header, f []record.Frame) []record.Frame {
		for n := 7; n < 300; n++ {
			c := &f[at(f, record.KindCheckpoint, n)]
			s, err := record.Stated(c)
			if err != nil {
				t.Fatal(err)
			}
			forged, err := record.Checkpoint(s, attacker.Signer(), false)
			if err != nil {
				t.Fatal(err)
			}
			c.Body = forged.Body
		}
		return f
	})
	r := verifyWith(t, v, nil, ledger.Options{})
	if len(r.Findings) != 1 || r.Findings[0].Code != ledger.SignatureWrong || r.Findings[0].Sequence != 8 {
		t.Errorf("findings %v", r.Findings)
	}
}

func TestParse(t *testing.T) {
	head := `{"gateway":"g","epoch":"06eeq4qag1hqfnwe49a5rg7yac","size":1,"root":"` + strings.Repeat("ab", 32) + `"}`
	for text, want := range map[string]string{
		"": "empty", "{}": "no heads", "[]": "no heads", "[" + head + "]": "", `{"heads":[` + head + `]}`: "",
		"[" + strings.Replace(head, `"size":1`, `"size":0`, 1) + "]": "size above 0", "[" + strings.Replace(head, "abab", "xbab", 1) + "]": "64 hex", "a note": "no signature",
		"[" + strings.Replace(head, "06ee", "..", 1) + "]": "head 1", "[1]": "list of heads", `{"heads":1}`: "report",
	} {
		if _, err := ledger.ParseHeads([]byte(text)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"gw-1 15m\n# c\n\ngw-2 -\n": "", "gw-1": "line 1", "a 1m\na 1m": "twice", "a 0s": "no silence", "a 1": "no silence", "a 1m x": "want a gateway", "": "",
	} {
		if _, err := ledger.ParseRegister(text); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for text, want := range map[string]string{"": "no deployment key", "# x\n" + deploymentKey + "\n" + deploymentKey: "", "key": "deployment key"} {
		l, err := ledger.ParseTrust(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if err == nil && len(l.Names()) != 1 {
			t.Errorf("names %v", l.Names())
		}
	}
}

func FuzzParseHeads(f *testing.F) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	g.Cut()
	f.Add([]byte(`{"heads":[{"epoch":"x"}]}`))
	f.Add([]byte(fmt.Sprintf("verbatim.dev/gw-1/%s\n1\nAAAA\n\n— x y\n", g.Epoch)))
	f.Fuzz(func(t *testing.T, b []byte) {
		heads, err := ledger.ParseHeads(b)
		if err != nil {
			return
		}
		if _, err := ledger.Verify(t.Context(), v, ledger.Options{Checkpoints: heads, Now: clock(ledgertest.Start)}); err != nil {
			t.Error(err)
		}
	})
}

// TestKeptExpires holds that what has expired is no roll-back and no omission,
// and that before its time it is.
func TestKeptExpires(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Deployment = deployment
	g.Begin()
	old := g.Run(query(1))
	g.Cut()
	later := g.Run(query(2))
	g.Crash()
	first := g.Epoch
	g.Now = g.Now.Add(time.Hour)
	g.Begin()
	g.Run(query(3))
	g.Cut()
	o := ledger.Options{
		Trust: trust(t, deploymentKey), Checkpoints: kept(t, v), Receipts: []record.Receipt{g.Receipt(old), g.Receipt(later)},
		Retention: 365 * 24 * time.Hour,
	}
	names := v.Names("segments/")
	if len(names) != 3 {
		t.Fatal(names)
	}
	due, before := ledgertest.Start.AddDate(1, 0, 1), ledgertest.Start.AddDate(0, 11, 0)
	for n, want := range [][]string{{"recorded", "recorded"}, {"expired", "recorded"}, {"expired", "expired"}} {
		c := v.Clone()
		for _, name := range c.Names("segments/") {
			if m, err := vault.ParseSegmentName(name); err != nil || m.Epoch == first && n > 0 {
				if n == 1 && m.First > 1 {
					continue // the epoch's second segment stays
				}
				delete(c.Files, name)
			}
		}
		r := verifyAt(t, c, nil, o, due)
		for _, f := range r.Findings {
			t.Errorf("%d: %s: %s", n, f.Code, f)
		}
		for i, x := range r.Receipts {
			if x.State != want[i] {
				t.Errorf("%d: receipt %d is %s, want %s", n, i, x.State, want[i])
			}
		}
		// The copy of the open record goes on to name the key.
		if len(r.Notices) != 0 {
			t.Errorf("notices %v", r.Notices)
		}
		if n > 0 {
			if r := verifyAt(t, c, nil, o, before); r.Sound {
				t.Errorf("%d: nothing was found before the time", n)
			}
		}
	}
}
