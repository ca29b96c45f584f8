package bundle_test

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/bundle"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
)

const canary = "canary-of-another-session"

type sample struct {
	v       *ledgertest.Vault
	g       *ledgertest.Gateway
	private *keyset.Handle
	trust   *record.Trust
	stray   *record.Trust
	ids     []record.ID
}

func trusted(t testing.TB, key string) *record.Trust {
	t.Helper()
	l, err := record.ParseTrust(key)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func makeSample(t testing.TB) *sample {
	t.Helper()
	private, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := private.Public()
	if err != nil {
		t.Fatal(err)
	}
	signer, key := ledgertest.Deployment("deployment")
	_, stray := ledgertest.Deployment("deployment")
	s := &sample{v: ledgertest.New(), private: private, trust: trusted(t, key), stray: trusted(t, stray)}
	s.g = ledgertest.NewGateway(s.v, "gw-1", public)
	s.g.Deployment = signer
	s.g.Begin()
	run := func(session, sql string) {
		s.ids = append(s.ids, s.g.Run(ledgertest.Exchange{Session: session, Subject: "<script>alert(1)</script>", SQL: sql, Received: true, Request: []byte(`{"query":1}`), Response: bytes.Repeat([]byte("row,"), 40000)}))
	}
	run("s1", "SELECT 1 AS first")
	run("s2", canary)
	s.g.Cut()
	run("s1", "SELECT '<b>bold</b>'")
	s.g.Now = s.g.Now.Add(time.Hour)
	run("s3", "SELECT 3")
	cut := s.g.Start(ledgertest.Exchange{Session: "s1", Subject: "u", SQL: "SELECT interrupted", Request: []byte("{}")})
	s.ids = append(s.ids, cut.ID)
	s.g.Crash()
	s.g.Now = s.g.Now.Add(time.Hour)
	s.g.Begin()
	s.g.Heartbeat()
	run("s2", canary)
	s.g.Cut()
	return s
}

func (s *sample) write(t testing.TB, c bundle.Config) []byte {
	t.Helper()
	c.Vault, c.Now = s.v, time.Date(2026, 3, 20, 0, 0, 0, 0, time.UTC)
	var b bytes.Buffer
	if _, err := bundle.Write(t.Context(), c, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func verify(t testing.TB, b []byte, o bundle.Options) *bundle.Report {
	t.Helper()
	r, err := bundle.Verify(t.Context(), bytes.NewReader(b), int64(len(b)), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func entries(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if out[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func pack(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range files {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSelections(t *testing.T) {
	s := makeSample(t)
	tests := []struct {
		name      string
		selection bundle.Selection
		noPayload bool
		keyless   bool
		listed    []int
		exchanges ledger.Exchanges
		epochs    int
	}{
		{name: "exchange", selection: bundle.Selection{Exchange: s.ids[0].String()}, listed: []int{0}, exchanges: ledger.Exchanges{Total: 1, Ended: 1}, epochs: 1},
		{name: "exchange, no payload", selection: bundle.Selection{Exchange: s.ids[0].String()}, noPayload: true, listed: []int{0}, exchanges: ledger.Exchanges{Total: 1, Ended: 1}, epochs: 1},
		{name: "exchange, no keys", selection: bundle.Selection{Exchange: s.ids[0].String()}, keyless: true, listed: []int{0}, exchanges: ledger.Exchanges{Total: 1, Ended: 1}, epochs: 1},
		{name: "session, one interrupted", selection: bundle.Selection{Session: "s1"}, listed: []int{0, 2, 4}, exchanges: ledger.Exchanges{Total: 3, Ended: 2, Interrupted: 1}, epochs: 2},
		{name: "time", selection: bundle.Selection{Since: ledgertest.Start.Add(time.Minute), Until: ledgertest.Start.Add(2 * time.Hour)}, listed: []int{3, 4}, exchanges: ledger.Exchanges{Total: 2, Ended: 1, Interrupted: 1}, epochs: 2},
		{name: "all", selection: bundle.Selection{Since: ledgertest.Start.Add(-time.Hour)}, listed: []int{0, 1, 2, 3, 4, 5}, exchanges: ledger.Exchanges{Total: 6, Ended: 5, Interrupted: 1}, epochs: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := bundle.Config{Tenant: s.private, Selection: tt.selection, NoPayload: tt.noPayload}
			if tt.keyless {
				c.Tenant = nil
			}
			b := s.write(t, c)
			r := verify(t, b, bundle.Options{Trust: s.trust, Receipts: []record.Receipt{s.g.Receipt(s.ids[tt.listed[0]])}})
			if !r.Sound || !r.Anchored || r.Opened == tt.keyless || r.Page != "as the records say" || (r.Digests > 0) != tt.noPayload {
				t.Errorf("%+v", r)
			}
			if r.Exchanges != tt.exchanges || len(r.Epochs) != tt.epochs {
				t.Errorf("exchanges %+v, epochs %+v", r.Exchanges, r.Epochs)
			}
			var want []string
			for _, i := range tt.listed {
				want = append(want, s.ids[i].String())
			}
			if strings.Join(r.Listed, " ") != strings.Join(want, " ") {
				t.Errorf("listed %v, want %v", r.Listed, want)
			}
			files := entries(t, b)
			page := string(files["report.html"])
			if strings.Contains(page, "<script>") || strings.Contains(page, "<b>bold") {
				t.Error("recorded text is not escaped")
			}
			if tt.name == "session, one interrupted" && (!strings.Contains(page, "&lt;script&gt;") || !strings.Contains(page, "SELECT interrupted") || strings.Contains(page, canary)) {
				t.Errorf("page: %s", page)
			}
			if r := verify(t, b, bundle.Options{Trust: s.stray}); r.Sound || r.Findings[0].Code != ledger.CertificateWrong {
				t.Errorf("proven to who trusts another deployment: %v", r.Findings)
			}
			if r := verify(t, b, bundle.Options{}); !r.Sound || r.Anchored {
				t.Errorf("unanchored: %+v", r)
			}
		})
	}
	var none bytes.Buffer
	if _, err := bundle.Write(t.Context(), bundle.Config{Vault: s.v, Tenant: s.private, Selection: bundle.Selection{Session: "nobody"}}, &none); !errors.Is(err, bundle.ErrNothing) {
		t.Errorf("%v", err)
	}
}

// TestKeysOfOthers holds that a bundle opens no session that was not selected.
func TestKeysOfOthers(t *testing.T) {
	s := makeSample(t)
	files := entries(t, s.write(t, bundle.Config{Tenant: s.private, Selection: bundle.Selection{Session: "s1"}}))
	var keys map[string][]byte
	if err := json.Unmarshal(files["keys.json"], &keys); err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 { // s1, and recovery's
		t.Errorf("%d keys", len(keys))
	}
	o := new(record.Opener)
	for name, raw := range keys {
		epoch, _, _ := strings.Cut(name, "/")
		e, err := record.ParseEpoch(epoch)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range s.v.Names("keys/" + epoch) {
			f, _, err := record.Decode(s.v.Files[other])
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(other, strings.TrimPrefix(name, epoch+"/")) {
				if err := o.AddKey(e, f.Key, raw); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	opened := 0
	for _, name := range s.v.Names("segments/") {
		seg, err := ledger.OpenSegment(t.Context(), s.v, name)
		if err != nil {
			t.Fatal(err)
		}
		for {
			f, _, err := seg.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.Key == (record.KeyID{}) {
				continue
			}
			b, err := o.Open(seg.Header().Epoch, &f)
			if err == nil {
				opened++
			}
			if bytes.Contains(b, []byte(canary)) {
				t.Fatal("another session's record opens")
			}
		}
	}
	if opened == 0 {
		t.Error("the keys open nothing")
	}
}

func TestErased(t *testing.T) {
	s := makeSample(t)
	for _, name := range s.v.Names("keys/") {
		delete(s.v.Files, name)
	}
	r := verify(t, s.write(t, bundle.Config{Tenant: s.private, Selection: bundle.Selection{Exchange: s.ids[0].String()}}), bundle.Options{Trust: s.trust})
	if !r.Sound || r.Opened || r.Erased != 1 {
		t.Errorf("%+v", r)
	}
}

// edit changes the manifest.
func edit(t *testing.T, files map[string][]byte, change func(m map[string]any, epoch map[string]any)) {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(files["manifest.json"], &m); err != nil {
		t.Fatal(err)
	}
	change(m, m["epochs"].([]any)[0].(map[string]any))
	var err error
	if files["manifest.json"], err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
}

func TestTampered(t *testing.T) {
	s := makeSample(t)
	whole := s.write(t, bundle.Config{Tenant: s.private, Selection: bundle.Selection{Session: "s1"}})
	other := makeSample(t)
	foreign := entries(t, other.write(t, bundle.Config{Tenant: other.private, Selection: bundle.Selection{Session: "s1"}}))
	frames := ""
	for name := range entries(t, whole) {
		if strings.HasPrefix(name, "records/") && (frames == "" || name < frames) {
			frames = name
		}
	}
	// reframe changes a record and makes its checksum right.
	reframe := func(t *testing.T, files map[string][]byte, n int, change func(f *record.Frame)) {
		b, out := files[frames], []byte(nil)
		for i := 0; len(b) > 0; i++ {
			f, size, err := record.Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			b = b[size:]
			if i == n {
				change(&f)
			}
			if out, err = f.Encode(out); err != nil {
				t.Fatal(err)
			}
		}
		files[frames] = out
	}
	tests := []struct {
		name string
		code ledger.Code
		do   func(t *testing.T, files map[string][]byte)
	}{
		{"bit flipped", ledger.FrameWrong, func(t *testing.T, f map[string][]byte) { f[frames][len(f[frames])/2] ^= 1 }},
		{"cut off", ledger.FrameWrong, func(t *testing.T, f map[string][]byte) { f[frames] = f[frames][:len(f[frames])-10] }},
		{"more at the end", ledger.FrameWrong, func(t *testing.T, f map[string][]byte) { f[frames] = append(f[frames], 1) }},
		{"record changed, checksum made right", ledger.RootWrong, func(t *testing.T, f map[string][]byte) {
			reframe(t, f, 3, func(f *record.Frame) { f.Body[20] ^= 1 })
		}},
		{"time changed", ledger.RootWrong, func(t *testing.T, f map[string][]byte) {
			reframe(t, f, 2, func(f *record.Frame) { f.Time = f.Time.Add(-time.Hour) })
		}},
		{"open record's key changed", ledger.SignatureWrong, func(t *testing.T, f map[string][]byte) {
			reframe(t, f, 0, func(f *record.Frame) {
				var o record.Open
				if err := record.Unmarshal(f.Body, &o); err != nil {
					t.Fatal(err)
				}
				e, _ := record.ParseEpoch(strings.TrimSuffix(strings.TrimPrefix(frames, "records/"), ".frames"))
				k, err := record.NewEpochKey("gw-1", e, nil)
				if err != nil {
					t.Fatal(err)
				}
				o.Key = k.Public()
				f.Body, _ = record.Marshal(o)
			})
		}},
		{"records file dropped", ledger.SegmentMissing, func(t *testing.T, f map[string][]byte) { delete(f, frames) }},
		{"digest of the rest changed", ledger.RootWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) { e["gaps"].([]any)[0] = strings.Repeat("00", 32) })
		}},
		{"digest of the rest dropped", ledger.RootWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) { e["gaps"] = e["gaps"].([]any)[1:] })
		}},
		{"record dropped from the list", ledger.FrameWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) { e["records"] = e["records"].([]any)[:2] })
		}},
		{"sequence changed", ledger.FrameWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) { e["records"].([]any)[1].(map[string]any)["sequence"] = 3 })
		}},
		{"out of order", ledger.FrameWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) { r := e["records"].([]any); r[1], r[2] = r[2], r[1] })
		}},
		{"checkpoint's size changed", ledger.RootWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) {
				e["checkpoint"] = strings.Replace(e["checkpoint"].(string), "\n39\n", "\n38\n", 1)
				if !strings.Contains(e["checkpoint"].(string), "\n38\n") {
					t.Fatal(e["checkpoint"])
				}
			})
		}},
		{"checkpoint without a signature", ledger.SignatureWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) { e["checkpoint"], _, _ = strings.Cut(e["checkpoint"].(string), "\n\n") })
		}},
		{"gateway changed", ledger.OriginWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(_, e map[string]any) { e["gateway"] = "gw-2" })
		}},
		{"exchange listed that is not there", ledger.ExchangeWrong, func(t *testing.T, f map[string][]byte) {
			edit(t, f, func(m, _ map[string]any) {
				m["exchanges"] = append(m["exchanges"].([]any), s.ids[1].String())
			})
		}},
		{"data key changed", ledger.BodyWrong, func(t *testing.T, f map[string][]byte) {
			var keys map[string][]byte
			if err := json.Unmarshal(f["keys.json"], &keys); err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				k[0] ^= 1
			}
			f["keys.json"], _ = json.Marshal(keys)
		}},
		{"another deployment's bundle", ledger.CertificateWrong, func(t *testing.T, f map[string][]byte) {
			clear(f)
			for name, b := range foreign {
				f[name] = b
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := entries(t, whole)
			tt.do(t, files)
			r := verify(t, pack(t, files), bundle.Options{Trust: s.trust})
			found := false
			for _, f := range r.Findings {
				found = found || f.Code == tt.code
			}
			if r.Sound || !found {
				t.Errorf("want %s, found %v", tt.code, r.Findings)
			}
		})
	}
	files := entries(t, whole)
	files["report.html"] = append(files["report.html"], " "...)
	if r := verify(t, pack(t, files), bundle.Options{Trust: s.trust}); !strings.Contains(r.Page, "do not rely on it") {
		t.Errorf("a changed page %s", r.Page)
	}
	r := s.g.Receipt(s.ids[0])
	r.Signature[0] ^= 1
	if r := verify(t, whole, bundle.Options{Receipts: []record.Receipt{r, s.g.Receipt(s.ids[1])}}); r.Sound || r.Findings[0].Code != ledger.ReceiptForged || r.Findings[1].Code != ledger.ReceiptUnproven {
		t.Errorf("receipts: %v", r.Findings)
	}
}

func FuzzVerify(f *testing.F) {
	s := makeSample(f)
	files := entries(f, s.write(f, bundle.Config{Tenant: s.private, Selection: bundle.Selection{Exchange: s.ids[4].String()}}))
	f.Add(files["manifest.json"], files["keys.json"])
	f.Fuzz(func(t *testing.T, manifest, keys []byte) {
		c := map[string][]byte{}
		for name, b := range files {
			c[name] = b
		}
		c["manifest.json"], c["keys.json"] = manifest, keys
		b := pack(t, c)
		_, _ = bundle.Verify(t.Context(), bytes.NewReader(b), int64(len(b)), bundle.Options{Trust: s.trust})
	})
}
