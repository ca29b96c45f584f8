package witness

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// state is the witness's file. Each note is the last one that it cosigned, with
// the cosignature.
type state struct {
	Version int               `json:"version"`
	Witness string            `json:"witness"` // verifier key
	Logs    map[string]string `json:"logs"`    // origin: signed checkpoint
}

const (
	stateVersion = 1
	maxState     = 64 << 20
)

// CreateState writes the state file of a witness that has signed nothing yet.
// It never replaces one.
func CreateState(path string, k *Key) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already: a witness must not forget what it signed", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return osFiles{}.write(path, state{Version: stateVersion, Witness: k.WitnessKey(), Logs: map[string]string{}}.marshal())
}

func (s state) marshal() []byte {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		panic(err) // strings alone
	}
	return append(b, '\n')
}

func readState(path string) (state, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, fmt.Errorf("state: %w (a new witness begins with --init; an old one without its state must not sign again, give the new one another key)", err)
	}
	if err != nil {
		return state{}, fmt.Errorf("state: %w", err)
	}
	return parseState(path, b)
}

func parseState(path string, b []byte) (state, error) {
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("state %s: %w", path, err)
	}
	if s.Version != stateVersion {
		return s, fmt.Errorf("state %s: version %d, this program reads %d", path, s.Version, stateVersion)
	}
	if s.Logs == nil {
		s.Logs = map[string]string{}
	}
	return s, nil
}

// files is what a witness writes with; tests put faults there.
type files interface {
	// write replaces the file: after nil the new content is durable, after an
	// error the file holds the old or the new.
	write(path string, b []byte) error
}

type osFiles struct{}

func (osFiles) write(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lock keeps a second witness away from the state.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if err := flock(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("state %s is in use by another witness: %w", path, err)
	}
	return f, nil
}
