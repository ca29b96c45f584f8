package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault/place"
)

// errHelp says that help was asked for and printed.
var errHelp = errors.New("help was printed")

// flags is a command's flag set with its help.
type flags struct {
	*flag.FlagSet
	name string
	help string
}

func newFlags(name, help string) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError), name: name, help: help}
	f.SetOutput(io.Discard)
	return f
}

// parse reads the arguments; flags may stand before, between and behind the
// others, of which it wants those named and returns them. The last may be left
// out where its name ends with a question mark.
func (f *flags) parse(args []string, stdout io.Writer, names ...string) ([]string, error) {
	var rest []string
	for {
		err := f.FlagSet.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			return nil, f.printHelp(stdout)
		}
		if err != nil {
			return nil, f.wrong(err)
		}
		args = f.Args()
		if len(args) == 0 {
			break
		}
		rest, args = append(rest, args[0]), args[1:]
	}
	switch {
	case len(rest) > len(names):
		return nil, &usageError{fmt.Sprintf("%s: unexpected argument %q", f.name, rest[len(names)]), f.see()}
	case len(rest) < len(names) && !strings.HasSuffix(names[len(rest)], "?"):
		return nil, &usageError{fmt.Sprintf("%s: %s is missing", f.name, names[len(rest)]), f.see()}
	}
	return rest, nil
}

func (f *flags) printHelp(w io.Writer) error {
	var b strings.Builder
	b.WriteString(strings.TrimLeft(f.help, "\n"))
	head := "\nFlags:\n"
	f.VisitAll(func(g *flag.Flag) {
		value, text := flag.UnquoteUsage(g)
		if g.DefValue != "" {
			text += fmt.Sprintf(" (default %s)", g.DefValue)
		}
		fmt.Fprintf(&b, "%s  --%s %s\n      %s\n", head, g.Name, value, text)
		head = ""
	})
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return errHelp
}

func (f *flags) see() string { return fmt.Sprintf("see recorder %s --help", f.name) }

// wrong makes the flag package's error say what to do.
func (f *flags) wrong(err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		var known []string
		f.VisitAll(func(g *flag.Flag) { known = append(known, g.Name) })
		return &usageError{fmt.Sprintf("%s: unknown flag --%s", f.name, strings.TrimLeft(name, "-")), suggest(strings.TrimLeft(name, "-"), known, "--", f.see())}
	}
	return &usageError{fmt.Sprintf("%s: %s", f.name, text), f.see()}
}

// suggest names what the word may have been meant for.
func suggest(word string, known []string, prefix, otherwise string) string {
	best, least := "", 3
	for _, k := range known {
		d := distance(word, k)
		if strings.HasPrefix(k, word) && len(word) > 1 {
			d = 1
		}
		if d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return otherwise
	}
	return fmt.Sprintf("did you mean %s%s? (%s)", prefix, best, otherwise)
}

// distance is how many letters must be changed, added or taken away
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			corner, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, corner+cost)
		}
	}
	return row[len(b)]
}

// choice refuses a flag's value that is none of those given.
func (f *flags) choice(name, value string, of ...string) error {
	for _, o := range of {
		if value == o {
			return nil
		}
	}
	return &usageError{fmt.Sprintf("%s: --%s %q: want %s", f.name, name, value, strings.Join(of, " or ")), f.see()}
}

// texts is a flag that may be given several times.
type texts []string

func (t *texts) String() string { return "" }

func (t *texts) Set(s string) error {
	if strings.TrimSpace(s) == "" {
		return errors.New("it is empty")
	}
	*t = append(*t, s)
	return nil
}

// readSmall reads a file that a person or this program wrote.
func readSmall(path string, most int64) ([]byte, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s: larger than %s", path, size(most))
	}
	return b, err
}

func (f *flags) trustFlag(t *texts) {
	f.Var(t, "trust", "the deployment's public key: the `FILE` deployment.pub or the key itself; several allowed; else $VERBATIM_TRUST, else that of $VERBATIM_HOME/run.json")
}

// trust reads the deployment keys that the user trusts, nil where there are
// none. That of run.json goes only with the vault of run.json.
func (f *flags) trust(t texts, vault string) (*ledger.Trust, error) {
	if env := os.Getenv("VERBATIM_TRUST"); len(t) == 0 && env != "" {
		t = texts{env}
	}
	if len(t) == 0 {
		run, _, err := runJSON()
		if err != nil || run.Trust == "" || vault == "" || !sameFile(vault, run.Vault) {
			return nil, nil //nolint:nilerr // a broken run.json vouches for nothing
		}
		t = texts{run.Trust}
	}
	const hint = "give the file deployment.pub that \"recorder key new\" wrote, or the key in it: NAME+HASH+KEY"
	var keys []string
	for _, key := range t {
		if _, err := note.NewVerifier(strings.TrimSpace(key)); err == nil {
			keys = append(keys, key)
			continue
		}
		b, err := readSmall(key, 1<<20)
		if err != nil {
			return nil, &usageError{fmt.Sprintf("%s: --trust: %v", f.name, err), hint}
		}
		if _, err := ledger.ParseTrust(string(b)); err != nil && len(t) > 1 {
			return nil, &usageError{fmt.Sprintf("%s: --trust %s: %v", f.name, key, err), hint}
		}
		keys = append(keys, string(b))
	}
	// The keys of all count. What one file ends, all do; what two tell apart,
	// such as a key that was rotated to two others, is nobody's to decide here.
	out, err := ledger.ParseTrust(strings.Join(keys, "\n"))
	switch {
	case err != nil && len(t) > 1:
		return nil, &usageError{fmt.Sprintf("%s: --trust: %s contradict each other: %v", f.name, strings.Join(t, ", "), err), "ask the deployment's owner which of them is true: recorder key fingerprint FILE"}
	case err != nil:
		return nil, &usageError{fmt.Sprintf("%s: --trust: %v", f.name, err), hint}
	}
	return out, nil
}

// where is where the evidence is: the flags that all reading commands share.
type where struct {
	vault, keyset string
	spec          place.Spec
	reads         string // where reads with the keyset are put on record
	why           string // they are made

	tenant *keyset.Handle // of keyset, once it was opened
}

// index is where the index of the vault is, "" where nothing says so.
func (p *where) index(flag string) string {
	for _, at := range []string{flag, os.Getenv("VERBATIM_INDEX"), p.spec.Index} {
		if at != "" {
			return at
		}
	}
	return ""
}

const indexUsage = "where the index is: a `FOLDER` or gs://BUCKET[/PREFIX], apart from the vault; else $VERBATIM_INDEX, else the index of the vault file"

func (f *flags) vaultFlag(p *where) {
	f.StringVar(&p.vault, "vault", "", "the `VAULT`: a folder, gs://BUCKET, a vault file or CLASS:RETENTION=PLACE,...,keys=PLACE; else $VERBATIM_VAULT, else the vault of $VERBATIM_HOME/run.json")
}

func (f *flags) keysetFlag(p *where) {
	f.StringVar(&p.keyset, "keyset", "", "the tenant's private keyset `FILE`; else $VERBATIM_KEYSET, else that of $VERBATIM_HOME/run.json")
}

// runFile is the part of run.json that the recorder reads.
type runFile struct {
	Vault  string `json:"vault"`
	Keyset string `json:"keyset"`
	Trust  string `json:"trust"`
}

// runJSON reads run.json, which "make run" writes. Its relative paths are
// relative to its folder. It returns zero values where there is none.
func runJSON() (runFile, string, error) {
	home := os.Getenv("VERBATIM_HOME")
	if home == "" {
		home = ".verbatim"
	}
	path := filepath.Join(home, "run.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return runFile{}, path, nil
	}
	if err != nil {
		return runFile{}, path, err
	}
	var r runFile
	if err := json.Unmarshal(b, &r); err != nil {
		return runFile{}, path, fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range []*string{&r.Vault, &r.Keyset, &r.Trust} {
		if *p != "" && !filepath.IsAbs(*p) && !strings.Contains(*p, "://") {
			*p = filepath.Join(home, *p)
		}
	}
	return r, path, nil
}

// resolve fills in what the flags left out. The keyset of run.json goes only
// with the vault of run.json: it does not fit another.
func (f *flags) resolve(p *where) error {
	if p.vault == "" {
		p.vault = os.Getenv("VERBATIM_VAULT")
	}
	if p.keyset == "" {
		p.keyset = os.Getenv("VERBATIM_KEYSET")
	}
	if p.vault == "" || p.keyset == "" {
		run, path, err := runJSON()
		switch {
		case err != nil && p.vault == "":
			return fmt.Errorf("%s: no --vault, and %w", f.name, err)
		case p.vault == "" && run.Vault == "":
			return &usageError{fmt.Sprintf("%s: which vault?", f.name), fmt.Sprintf("give --vault VAULT or set VERBATIM_VAULT; %s, which \"make run\" writes, names none", path)}
		case p.vault == "":
			p.vault = run.Vault
		}
		if p.keyset == "" && sameFile(p.vault, run.Vault) {
			p.keyset = run.Keyset
		}
	}
	var err error
	if p.spec, err = place.Parse(p.vault); err != nil {
		return &usageError{fmt.Sprintf("%s: %v", f.name, err), "recorder vault --help tells what a vault may be"}
	}
	return nil
}

func sameFile(a, b string) bool {
	if a == b && a != "" {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// open opens the vault for reading. Close it when done.
func (f *flags) open(ctx context.Context, p *where) (*place.Vault, error) {
	if err := f.resolve(p); err != nil {
		return nil, err
	}
	v, err := place.Open(ctx, place.Config{Spec: p.spec})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return v, nil
}

// keys returns the keyring over the vault, nil where no keyset is given.
func (f *flags) keys(ctx context.Context, p *where, v keyring.Source) (*keyring.Keyring, error) {
	if p.keyset == "" {
		return nil, nil
	}
	tenant, err := f.tenant(ctx, p)
	if err != nil {
		return nil, err
	}
	k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		return nil, fmt.Errorf("%s: keyset %s: %w (is it tenant.json, not tenant.pub.json?)", f.name, p.keyset, err)
	}
	return k, nil
}

// tenant returns the tenant's private keyset, nil where none is given. It is
// opened once, for Cloud KMS counts what is asked.
func (f *flags) tenant(ctx context.Context, p *where) (*keyset.Handle, error) {
	if p.keyset == "" || p.tenant != nil {
		return p.tenant, nil
	}
	h, err := readKeyset(ctx, p.keyset)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	p.tenant = h
	return h, nil
}

// kmsConfig says how Cloud KMS is reached; tests have a double of it.
var kmsConfig kms.Config

// maxKeyset bounds the file of a keyset.
const maxKeyset = 1 << 20

// readKeyset reads the tenant's private keyset. Where it is wrapped, Cloud KMS
// opens it.
func readKeyset(ctx context.Context, path string) (*keyset.Handle, error) {
	b, err := readSmall(path, maxKeyset)
	if err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	return openKeyset(ctx, path, b)
}

// openKeyset is readKeyset of what the file holds.
func openKeyset(ctx context.Context, path string, b []byte) (*keyset.Handle, error) {
	w, wrapped, err := kms.ParseWrapped(b)
	if err != nil {
		return nil, fmt.Errorf("keyset %s: %w", path, err)
	}
	if wrapped {
		h, err := w.Open(ctx, kmsConfig)
		if err != nil {
			return nil, fmt.Errorf("keyset %s: %w", path, err)
		}
		return h, nil
	}
	tenant, err := record.ReadTenant(bytes.NewReader(b), true)
	if err != nil {
		return nil, fmt.Errorf("keyset %s: %w (\"recorder key new\" makes one)", path, err)
	}
	return tenant, nil
}
