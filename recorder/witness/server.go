package witness

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// SizeType is the media type of an answer that holds a size alone.
const SizeType = "text/x.tlog.size"

// Config configures a [Witness].
type Config struct {
	Key *Key
	// Logs are the keys of the logs that are cosigned, each by its origin,
	// which is the key's name.
	Logs []note.Verifier
	// State is the file that [CreateState] made.
	State  string
	Logger *slog.Logger     // nil: none
	Now    func() time.Time // nil: time.Now

	files files // nil: the real ones
}

// Stats are counts since the witness was opened.
type Stats struct{ Cosigned, Refused, Forks uint64 }

// Witness cosigns checkpoints. It is an [http.Handler] of
//
//	POST PREFIX/add-checkpoint              see https://c2sp.org/tlog-witness
//	GET  PREFIX/checkpoint?origin=ORIGIN    the last checkpoint that it cosigned
//
// where the second is no part of that protocol: what it gives is for those who
// verify, who learn there how far the log was. The origin may be left out where
// there is one log. A Witness is safe for concurrent use.
type Witness struct {
	c    Config
	mux  *http.ServeMux
	log  *slog.Logger
	logs map[string]note.Verifier
	lock *os.File

	stats struct{ cosigned, refused, forks atomic.Uint64 }

	mu sync.Mutex
	// state is what the file holds. Once it could not be written err is set:
	// the file may hold either, so that nothing may be signed.
	state state
	last  map[string]tlog.Tree
	stamp int64 // of the latest cosignature, Unix seconds
	err   error
}

// Open returns a witness that goes on from its state. Close it when done.
func Open(c Config) (*Witness, error) {
	w := &Witness{c: c, log: c.Logger, mux: http.NewServeMux(), logs: map[string]note.Verifier{}, last: map[string]tlog.Tree{}}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if w.c.Now == nil {
		w.c.Now = time.Now
	}
	if w.c.files == nil {
		w.c.files = osFiles{}
	}
	if c.Key == nil || len(c.Logs) == 0 {
		return nil, errors.New("witness: a key of its own and that of a log are needed")
	}
	for _, v := range c.Logs {
		if w.logs[v.Name()] != nil {
			return nil, fmt.Errorf("witness: two keys of the log %s", v.Name())
		}
		w.logs[v.Name()] = v
	}
	var err error
	if w.lock, err = lock(c.State); err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	if err := w.load(); err != nil {
		_ = w.lock.Close()
		return nil, fmt.Errorf("witness: %w", err)
	}
	w.mux.HandleFunc("/add-checkpoint", w.add)
	w.mux.HandleFunc("/checkpoint", w.show)
	return w, nil
}

func (w *Witness) load() error {
	s, err := readState(w.c.State)
	if err != nil {
		return err
	}
	if s.Witness != w.c.Key.WitnessKey() {
		return fmt.Errorf("state %s is that of %s, the key is %s", w.c.State, s.Witness, w.c.Key.WitnessKey())
	}
	own, err := NewVerifier(w.c.Key.WitnessKey())
	if err != nil {
		return err
	}
	for origin, signed := range s.Logs {
		v := w.logs[origin]
		if v == nil {
			continue // kept, should it come back
		}
		c, n, err := OpenCheckpoint([]byte(signed), v, own)
		if err != nil {
			return fmt.Errorf("state %s: log %s: %w (was the log's key changed? then the log needs another origin)", w.c.State, origin, err)
		}
		w.last[origin] = c.Tree
		for _, sig := range n.Sigs {
			if t, ok := own.Time(sig); ok {
				w.stamp = max(w.stamp, t.Unix())
			}
		}
	}
	w.state = s
	return nil
}

// Close gives the state free.
func (w *Witness) Close() error { return w.lock.Close() }

// Stats returns the counts of now.
func (w *Witness) Stats() Stats {
	return Stats{w.stats.cosigned.Load(), w.stats.refused.Load(), w.stats.forks.Load()}
}

// Refusal is an answer other than a cosignature.
type Refusal struct {
	Status int
	Size   int64 // of the last checkpoint, with status 409 and not Fork
	Fork   bool  // another root at the same size
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

func refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Reason: fmt.Sprintf(format, args...)}
}

// ServeHTTP implements [http.Handler].
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) { w.mux.ServeHTTP(rw, r) }

func (w *Witness) add(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		http.Error(rw, "add-checkpoint is a POST", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxRequest))
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		http.Error(rw, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(rw, "the request's body could not be read", http.StatusBadRequest)
		return
	}
	line, err := w.Add(body)
	var no *Refusal
	switch {
	case err == nil:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write(line)
	case errors.As(err, &no) && no.Status == http.StatusConflict && !no.Fork:
		rw.Header().Set("Content-Type", SizeType)
		rw.WriteHeader(no.Status)
		_, _ = fmt.Fprintf(rw, "%d\n", no.Size)
	case errors.As(err, &no):
		http.Error(rw, no.Reason, no.Status)
	default:
		http.Error(rw, "the witness cannot keep its state and signs nothing", http.StatusInternalServerError)
	}
}

// Add judges the body of a request and returns the cosignature's line. The
// error is a [*Refusal], or says that the state could not be made durable.
func (w *Witness) Add(body []byte) ([]byte, error) {
	line, err := w.judge(body)
	var no *Refusal
	if errors.As(err, &no) {
		w.stats.refused.Add(1)
		w.log.Warn("witness: refused", "status", no.Status, "error", no)
	} else if err != nil {
		w.log.Error("witness: alarm", "error", err)
	}
	return line, err
}

func (w *Witness) judge(body []byte) ([]byte, error) {
	r, err := ParseRequest(body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	if len(r.Checkpoint) > MaxCheckpoint {
		return nil, refuse(http.StatusBadRequest, "checkpoint of %d bytes, at most %d are read", len(r.Checkpoint), MaxCheckpoint)
	}
	origin := Origin(r.Checkpoint)
	v := w.logs[origin]
	if v == nil {
		return nil, refuse(http.StatusNotFound, "the log %.80q is not known here", origin)
	}
	n, err := note.Open(r.Checkpoint, note.VerifierList(v))
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified), errors.As(err, &invalid):
		return nil, refuse(http.StatusForbidden, "the checkpoint is not signed with the key of %s", origin)
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "the checkpoint is no signed note")
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	if r.Old > c.N {
		return nil, refuse(http.StatusBadRequest, "the old size %d is above the checkpoint's %d", r.Old, c.N)
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	last, known := w.last[origin]
	if !known {
		last.Hash = EmptyRoot
	}
	if r.Old != last.N {
		return nil, &Refusal{Status: http.StatusConflict, Size: last.N, Reason: fmt.Sprintf("the last checkpoint of %s had size %d, not %d", origin, last.N, r.Old)}
	}
	if known && c.N == last.N && c.Hash != last.Hash {
		w.fork(origin, r.Checkpoint)
		return nil, &Refusal{Status: http.StatusConflict, Fork: true, Reason: fmt.Sprintf("fork of %s at size %d: the root was %s, now it is %s", origin, c.N, last.Hash, c.Hash)}
	}
	if err := CheckConsistency(r.Proof, c.Tree, last); err != nil {
		return nil, refuse(http.StatusUnprocessableEntity, "the checkpoint of size %d does not go on from size %d: %v", c.N, last.N, err)
	}
	return w.cosign(origin, n.Text, r.Checkpoint, v, c.Tree)
}

// cosign makes the new state durable and returns the cosignature.
func (w *Witness) cosign(origin, text string, signed []byte, v note.Verifier, t tlog.Tree) ([]byte, error) {
	// A clock that was set back must not make the statement older than the one before.
	w.stamp = max(w.stamp, w.c.Now().Unix())
	line, err := Line(text, w.c.Key.Cosigner(time.Unix(w.stamp, 0)))
	if err != nil {
		return nil, err
	}
	// What others signed is left out: it may be anything.
	log, err := only(signed, v)
	if err != nil {
		return nil, err
	}
	next := state{Version: stateVersion, Witness: w.state.Witness, Logs: map[string]string{}}
	for o, n := range w.state.Logs {
		next.Logs[o] = n
	}
	next.Logs[origin] = string(log) + string(line)
	if err := w.c.files.write(w.c.State, next.marshal()); err != nil {
		w.err = fmt.Errorf("witness: state: %w: nothing is signed until the next start", err)
		return nil, w.err
	}
	w.state, w.last[origin] = next, t
	w.stats.cosigned.Add(1)
	w.log.Info("witness: cosigned", "origin", origin, "size", t.N, "root", t.Hash.String())
	return line, nil
}

// only returns the note with the signatures of the one verifier alone.
func only(signed []byte, v note.Verifier) ([]byte, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return nil, err
	}
	n.UnverifiedSigs = nil
	return note.Sign(n)
}

// fork keeps both checkpoints: two of the same size with the log's signature
// prove that the log was forked.
func (w *Witness) fork(origin string, signed []byte) {
	w.stats.forks.Add(1)
	other, err := only(signed, w.logs[origin])
	if err != nil {
		return
	}
	w.log.Error("witness: alarm", "error", "fork", "origin", origin, "cosigned", w.state.Logs[origin], "refused", string(other))
	path := w.c.State + ".fork-" + strconv.FormatInt(w.last[origin].N, 10)
	if _, err := os.Lstat(path); err == nil {
		return // one proof is enough
	}
	if err := w.c.files.write(path, []byte(w.state.Logs[origin]+"\n\n"+string(other))); err != nil {
		w.log.Error("witness: the proof of a fork could not be kept", "file", filepath.Base(path), "error", err)
	}
}

func (w *Witness) show(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		rw.Header().Set("Allow", http.MethodGet)
		http.Error(rw, "checkpoint is a GET", http.StatusMethodNotAllowed)
		return
	}
	origin := r.URL.Query().Get("origin")
	if origin == "" && len(w.c.Logs) == 1 {
		origin = w.c.Logs[0].Name()
	}
	w.mu.Lock()
	_, known := w.last[origin]
	signed := w.state.Logs[origin]
	w.mu.Unlock()
	if !known {
		http.Error(rw, "no checkpoint of that log was cosigned", http.StatusNotFound)
		return
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(rw, signed)
}
