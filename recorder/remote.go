package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/record"
)

// remote is the service that reads for the user, in place of a vault and a
// keyset.
type remote struct{ server, tokenFile string }

func (f *flags) remoteFlags(r *remote) {
	f.StringVar(&r.server, "server", "", "the `URL` of a recorder serve that reads in your place, on record; else $VERBATIM_SERVER, unless --vault is given")
	f.StringVar(&r.tokenFile, "token-file", "", "with --server: the `FILE` with your token, - for standard input; else $VERBATIM_TOKEN, else what recorder login keeps")
}

// client returns the client of the service, nil where the user reads a vault.
func (f *flags) client(r *remote, p *where) (*access.Client, error) {
	if err := access.CheckWhy(p.why); err != nil {
		return nil, &usageError{fmt.Sprintf("%s: --why: %v", f.name, err), f.see()}
	}
	if r.server != "" && p.vault != "" {
		return nil, &usageError{f.name + ": --server and --vault exclude each other", "keep one: the service has a vault of its own"}
	}
	if r.server == "" && p.vault == "" {
		r.server = os.Getenv("VERBATIM_SERVER")
	}
	if r.server == "" {
		if r.tokenFile != "" {
			return nil, &usageError{f.name + ": --token-file goes with --server: no token proves who reads here with a keyset", f.see()}
		}
		return nil, nil
	}
	if p.reads != "" {
		return nil, &usageError{f.name + ": --reads goes with a keyset: a service keeps records of its own", f.see()}
	}
	if err := access.CheckServer(r.server); err != nil {
		return nil, &usageError{fmt.Sprintf("%s: --server: %v", f.name, err), f.see()}
	}
	token, err := f.token(r)
	if err != nil {
		return nil, err
	}
	c, err := access.NewClient(access.ClientConfig{Server: r.server, Token: token, UserAgent: "recorder/" + record.Build})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return c, nil
}

// maxToken is more than what a service looks at.
const maxToken = 64 << 10

// token finds the user's token. It never stands in an error.
func (f *flags) token(r *remote) (string, error) {
	switch {
	case r.tokenFile == "-":
		b, err := io.ReadAll(io.LimitReader(os.Stdin, maxToken))
		return strings.TrimSpace(string(b)), err
	case r.tokenFile != "":
		b, err := readSmall(r.tokenFile, maxToken)
		if err != nil {
			return "", fmt.Errorf("%s: --token-file: %w", f.name, err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	if t := os.Getenv("VERBATIM_TOKEN"); t != "" {
		return strings.TrimSpace(t), nil
	}
	kept, path, err := logins()
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.name, err)
	}
	if t := kept[serverKey(r.server)]; t != "" {
		return t, nil
	}
	return "", &usageError{fmt.Sprintf("%s: who are you? no token for %s", f.name, r.server),
		fmt.Sprintf("recorder login --server %s keeps one in %s; or give --token-file FILE, or set VERBATIM_TOKEN", r.server, path)}
}

func serverKey(server string) string { return strings.TrimSuffix(server, "/") }

// logins reads the tokens that login keeps, by server.
func logins() (map[string]string, string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, "verbatim", "login.json")
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, path, nil
	}
	if err != nil {
		return nil, path, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, path, fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it, and log in again where somebody may have", path, st.Mode().Perm())
	}
	b, err := readSmall(path, 1<<20)
	if err != nil {
		return nil, path, err
	}
	kept := map[string]string{}
	if json.Unmarshal(b, &kept) != nil { // its error could quote a token
		return nil, path, fmt.Errorf("%s is not what recorder login writes: remove it and log in again", path)
	}
	return kept, path, nil
}

// failed names the command in an error, unless it does so itself, and says
// what to do about those of a service.
func (f *flags) failed(err error) error {
	var usage *usageError
	var said *access.Error
	var down *net.OpError
	switch {
	case err == nil, errors.As(err, &usage):
		return err
	case errors.As(err, &said) && said.Status == 401:
		return fmt.Errorf("%s: %w; log in anew: recorder login --help", f.name, err)
	case errors.As(err, &down):
		return fmt.Errorf("%s: %w (is recorder serve running there?)", f.name, err)
	case strings.HasPrefix(err.Error(), f.name+": "):
		return err
	}
	return fmt.Errorf("%s: %w", f.name, err)
}
