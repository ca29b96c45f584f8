package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

// A real journal, over several runs of a gateway that is cut off from the sink
// now and then: the vault gets each record of each epoch, in one chain, with a
// key that opens it, and the journal is freed.
func TestJournalToVault(t *testing.T) {
	dir, err := os.MkdirTemp("", "verbatim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	open := func() *journal.Journal {
		j, err := journal.Open(t.Context(), journal.Config{
			Dir: filepath.Join(dir, "journal"), Gateway: "gw-1", Version: "test", Tenant: public, Class: "standard",
			Retention: map[string]time.Duration{"standard": time.Hour}, Limit: 32 << 20, SegmentSize: 1 << 20,
			CutBytes: 64 << 10, CutInterval: 20 * time.Millisecond, Heartbeat: 5 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	side := func(j *journal.Journal) transport.Journal {
		return transport.Journal{Tail: func() transport.Source { return transport.NewSource(j.Tail()) }, Acknowledge: j.Acknowledge}
	}
	client, err := transport.NewClient(transport.ClientConfig{Socket: filepath.Join(dir, "s"), Gateway: "gw-1", MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	serveFor := func(ctx context.Context) <-chan error {
		served := make(chan error, 1)
		go func() { served <- serve(ctx, dir) }()
		return served
	}

	// wrote says for each record what its plain body must be.
	var mu sync.Mutex
	wrote := map[record.ID]string{}
	var epochs []record.Epoch
	for run := range 3 {
		j := open()
		epochs = append(epochs, j.Epoch())
		shipCtx, stopShip := context.WithCancel(t.Context())
		shipped := make(chan error, 1)
		go func() { shipped <- client.Ship(shipCtx, side(j)) }()
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := range 150 {
					body := fmt.Sprintf("run %d writer %d record %d %s", run, w, i, strings.Repeat("x", i*20))
					tk := j.Append(record.Draft{Kind: record.KindProbe, Session: fmt.Sprint("session ", w, i/50), Body: []byte(body)})
					if err := tk.Wait(t.Context()); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					wrote[tk.ID] = body
					mu.Unlock()
				}
			})
		}
		for range 3 { // the sink comes and goes
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond)
			if err := <-serveFor(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
		}
		wg.Wait()
		if run < 2 { // the gateway ends with records that no sink has
			stopShip()
			<-shipped
			if err := j.Close(t.Context(), "test"); err != nil {
				t.Fatal(err)
			}
			continue
		}
		ctx, cancel := context.WithCancel(t.Context())
		served := serveFor(ctx)
		if err := j.Finish(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-shipped:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the journal is not drained")
		}
		cancel()
		if err := <-served; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		stopShip()
		if st := j.Stats(); st.Epochs > 1 {
			t.Errorf("the journal keeps what the vault has: %+v", st)
		}
		if err := j.Close(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
	}

	v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	opener, err := record.NewOpener(tenant)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range snapshot(t, v) {
		e, _, err := vault.ParseKeyName(name)
		if err != nil {
			continue
		}
		f, _, err := record.Decode([]byte(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := opener.Add(e, &f); err != nil {
			t.Fatal(err)
		}
	}
	read := 0
	for _, e := range epochs {
		head, seq := record.NewChain(e, "gw-1"), uint64(0)
		var kind record.Kind
		for name, err := range v.List(t.Context(), vault.SegmentsPrefix) {
			if err != nil {
				t.Fatal(err)
			}
			id, err := vault.ParseSegmentName(name)
			if err != nil {
				t.Fatal(err)
			}
			if id.Epoch != e {
				continue
			}
			s, c, err := vault.OpenSegment(t.Context(), v, name)
			if err != nil {
				t.Fatal(err)
			}
			if s.Header().Head != head || id.First != seq+1 {
				t.Fatalf("%s does not go on from record %d", name, seq)
			}
			if head, _, err = checkSegment(t.Context(), v, name, id); err != nil {
				t.Fatal(err)
			}
			for {
				f, err := s.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if !f.Kind.Leaf() {
					continue
				}
				kind = f.Kind
				body, err := opener.Open(e, &f)
				if err != nil {
					t.Fatal(err)
				}
				if want, ok := wrote[record.ID{Epoch: e, Sequence: f.Sequence}]; ok {
					read++
					if !bytes.Equal(body, []byte(want)) {
						t.Errorf("record %d of epoch %s is not what was appended", f.Sequence, e)
					}
				}
			}
			c.Close()
			seq = id.Last
		}
		if kind != record.KindClose {
			t.Errorf("epoch %s ends with a %s record", e, kind)
		}
	}
	if read != len(wrote) || read != 3*4*150 {
		t.Errorf("%d records read of %d", read, len(wrote))
	}
}
