package usage

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/policy"
)

var discard = slog.New(slog.DiscardHandler)

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func open(t *testing.T, file string, c *clock, share float64) *Book {
	t.Helper()
	b, err := Open(Config{File: file, Now: c.now, Share: share})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var windows = []policy.Window{{Of: "principal", Seconds: 60}, {Of: "principal", Seconds: 86400}, {Of: "run", Seconds: 3600}}

func shown(u policy.Usage) string {
	out := fmt.Sprint(u.Known)
	for _, w := range u.Windows {
		out += fmt.Sprintf(" %d/%d/%d", w.Queries, w.Bytes, w.Rows)
	}
	return out
}

func want(t *testing.T, what string, b *Book, principal, run, want string) {
	t.Helper()
	if got := shown(b.Of(principal, run, windows)); got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func TestCountsHoldAcrossRestarts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "usage")
	c := &clock{time.Unix(1_800_000_000, 0)}
	b := open(t, file, c, 0)
	want(t, "nothing yet", b, "p", "r", "true 0/0/0 0/0/0 0/0/0")
	b.Add("p", "r", Use{Queries: 1})
	b.Add("p", "r", Use{Bytes: 100, Job: "j", Rows: 5})
	b.Add("p", "r", Use{Bytes: 100, Job: "j", Rows: 5})
	b.Add("p", "r", Use{Bytes: 150, Job: "j"})
	b.Add("p", "other", Use{Queries: 1})
	b.Add("q", "r2", Use{Queries: 7})
	const now = "true 2/150/10 2/150/10 1/150/10"
	want(t, "at once", b, "p", "r", now)

	// The process dies: nothing was closed.
	b = open(t, file, c, 0)
	want(t, "after a crash", b, "p", "r", now)
	// And in the middle of a line.
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"t":18000000`)
	f.Close()
	b = open(t, file, c, 0)
	want(t, "after a line that was cut", b, "p", "r", now)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, "once it is closed", b, "p", "r", "false 2/150/10 2/150/10 1/150/10")

	c.at = c.at.Add(3 * time.Hour)
	b = open(t, file, c, 0)
	want(t, "three hours later", b, "p", "r", "true 0/0/0 2/150/10 0/0/0")
	b.Add("p", "r", Use{Queries: 3})
	b = open(t, file, c, 0)
	want(t, "and more", b, "p", "r", "true 3/0/0 5/150/10 3/0/0")
	c.at = c.at.Add(40 * 24 * time.Hour)
	b = open(t, file, c, 0)
	want(t, "after all windows", b, "p", "r", "true 0/0/0 0/0/0 0/0/0")
	if len(b.keys) != 0 {
		t.Errorf("%d keys are kept for ever", len(b.keys))
	}
}

// A window's first bucket counts whole: more than there was, never less.
func TestWindowsSlide(t *testing.T) {
	c := &clock{time.Unix(1_800_000_000, 0)}
	b := open(t, filepath.Join(t.TempDir(), "usage"), c, 0)
	var at []time.Time
	for i := range 600 {
		at = append(at, c.at)
		b.Add("p", "r", Use{Queries: 1})
		c.at = c.at.Add(time.Duration(1+i%97) * time.Second)
		for _, seconds := range []int64{1, 60, 90, 3600, 7200, 7201, 40000} {
			exact, most := int64(0), int64(0)
			width := int64(fine)
			if seconds > fineFor {
				width = coarse
			}
			for _, x := range at {
				if age := c.at.Unix() - x.Unix(); age < seconds {
					exact++
					most++
				} else if age < seconds+width {
					most++
				}
			}
			got := b.Of("p", "r", []policy.Window{{Of: "principal", Seconds: seconds}}).Windows[0].Queries
			if got < exact || got > most {
				t.Fatalf("after %d, %d seconds: %d, want %d to %d", i, seconds, got, exact, most)
			}
		}
	}
}

func TestCompactionKeepsCounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "usage")
	c := &clock{time.Unix(1_800_000_000, 0)}
	b := open(t, file, c, 0)
	for i := range 5000 {
		b.Add("p", "r", Use{Queries: 1, Rows: int64(i)})
		c.at = c.at.Add(3 * time.Second)
	}
	before := shown(b.Of("p", "r", append(windows, policy.Window{Of: "principal", Seconds: 7200})))
	large, _ := os.Stat(file)
	b = open(t, file, c, 0)
	after := shown(b.Of("p", "r", append(windows, policy.Window{Of: "principal", Seconds: 7200})))
	small, _ := os.Stat(file)
	if before != after {
		t.Errorf("%s became %s", before, after)
	}
	if small.Size() > large.Size()/5 {
		t.Errorf("%d bytes became %d", large.Size(), small.Size())
	}
}

func TestTheMachineWentDown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "usage")
	c := &clock{time.Unix(1_800_000_000, 0)}
	b := open(t, file, c, 0)
	b.Add("p", "r", Use{Queries: 1})
	c.at = c.at.Add(2 * time.Minute)
	b.Add("p", "r", Use{Queries: 3})
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(text, []byte(bootID()), []byte("another"), 1)
	if bytes.Equal(other, text) {
		t.Fatal("the file does not name the machine's running")
	}
	if err := os.WriteFile(file, other, 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, "with another boot", open(t, file, c, 0), "p", "r", "true 6/0/0 7/0/0 7/0/0")
	if err := os.WriteFile(file, append(other, []byte("{\"end\":true}\n")...), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, "closed in order", open(t, file, c, 0), "p", "r", "true 3/0/0 4/0/0 4/0/0")
}

func TestShareOfABudget(t *testing.T) {
	c := &clock{time.Unix(1_800_000_000, 0)}
	b := open(t, filepath.Join(t.TempDir(), "usage"), c, 0.3)
	b.Add("p", "r", Use{Queries: 1, Bytes: 1 << 62})
	want(t, "of three replicas", b, "p", "r", fmt.Sprintf("true 4/%[1]d/0 4/%[1]d/0 4/%[1]d/0", int64(1<<63-1)))
	for _, share := range []float64{-1, 1.1} {
		if _, err := Open(Config{File: filepath.Join(t.TempDir(), "u"), Share: share}); err == nil {
			t.Errorf("a share of %v is taken", share)
		}
	}
}

func TestWhatCannotBeKeptIsNotKnown(t *testing.T) {
	c := &clock{time.Unix(1_800_000_000, 0)}
	b := open(t, filepath.Join(t.TempDir(), "usage"), c, 0)
	if u := b.Of("p", "r", []policy.Window{{Of: "run", Seconds: int64(Longest/time.Second) + 1}}); u.Known {
		t.Error("a window longer than any is known")
	}
	b.file.Close()
	b.Add("p", "r", Use{Queries: 1})
	want(t, "with a file that fails", b, "p", "r", "false 1/0/0 1/0/0 1/0/0")

	for _, text := range []string{"x\n", `{"t":1,"q":-1}` + "\n", `{"t":1,"z":1}` + "\n", `{"v":2}` + "\n", strings.Repeat("a", 70<<10) + "\n"} {
		file := filepath.Join(t.TempDir(), "usage")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{File: file}); err == nil || !strings.Contains(err.Error(), "line 1") || !strings.Contains(err.Error(), file) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if _, err := Open(Config{File: filepath.Join(t.TempDir(), "usage", string([]byte{0}))}); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that cannot be: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "usage")
	b, err := Open(Config{File: file})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				b.Add("p", fmt.Sprint("r", i), Use{Queries: 1, Bytes: 10, Job: fmt.Sprint(i, j)})
				b.Of("p", "r0", windows)
				if j%50 == 0 {
					b.sync()
					b.mu.Lock()
					if err := b.compact(); err != nil {
						t.Error(err)
					}
					b.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	b, err = Open(Config{File: file})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.Of("p", "r", []policy.Window{{Of: "principal", Seconds: 7200}}).Windows[0]; got.Queries != 1600 || got.Bytes != 16000 {
		t.Errorf("%+v", got)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"v":1,"boot":"b"}` + "\n" + `{"t":5,"p":"p","r":"r","q":1}` + "\n" + `{"end":true}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := &Book{cfg: Config{Now: time.Now, Logger: discard, Share: 1}, keys: map[string]*series{}, jobs: map[string]int64{}}
		_ = b.load(bytes.NewReader(text))
		for _, w := range b.Of("p", "r", windows).Windows {
			if w.Queries < 0 || w.Bytes < 0 || w.Rows < 0 {
				t.Errorf("%+v", w)
			}
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	book, err := Open(Config{File: filepath.Join(b.TempDir(), "usage")})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		book.Add("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", Use{Queries: 1})
	}
}
