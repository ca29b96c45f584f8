package record

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// A trust file, deployment.pub, says which deployment keys a verifier takes for
// true. It is text:
//
//	# a comment
//	NAME+HASH+KEY [from TIME] [retired TIME]
//
//	verbatim.dev/rotation/v1
//	old NAME+HASH+KEY
//	new NAME+HASH+KEY
//	time TIME
//
//	— NAME SIGNATURE
//
// A line with a key alone is a root: it is trusted because it stands there. The
// signed notes add to it: a rotation, signed with the old key, makes the new
// key trusted from its time on; a retirement, signed with the key itself or with
// one that came after it, ends a key:
//
//	verbatim.dev/retirement/v1
//	key NAME+HASH+KEY
//	from TIME
//
// What a retired key certified before its end holds, what it certified
// afterwards does not. The time of a certificate is the signer's word: who has
// stolen a key can date back, and only checkpoints that were kept elsewhere, or
// witnesses, stand against that.
const (
	rotationHeader   = "verbatim.dev/rotation/v1"
	retirementHeader = "verbatim.dev/retirement/v1"

	// MaxTrust is the largest trust file, in bytes.
	MaxTrust = 1 << 20
	// maxTrusted is how many keys a trust file may have.
	maxTrusted = 1000
	// trustSkew is how far a gateway's clock may be behind that of whoever
	// rotated the key.
	trustSkew = 10 * time.Minute
)

// TrustedKey is a deployment key of a trust file.
type TrustedKey struct {
	// Key is the verifier key, NAME+HASH+KEY.
	Key      string
	Verifier note.Verifier
	// From is since when it certifies, zero for ever; Retired is from when it
	// does no more, zero where it still does.
	From, Retired time.Time
	// After is the key that signed for this one, if any.
	After string

	root bool
}

// ID is the key's name with its hash, which tells keys of one name apart.
func (k *TrustedKey) ID() string {
	return fmt.Sprintf("%s+%08x", k.Verifier.Name(), k.Verifier.KeyHash())
}

// holds reports whether the key may certify an epoch of that time.
func (k *TrustedKey) holds(at time.Time) error {
	switch {
	case !k.Retired.IsZero() && !at.Before(k.Retired):
		return fmt.Errorf("the key %s, which is retired from %s on, certified an epoch of %s", k.ID(), stamp(k.Retired), stamp(at))
	case !k.From.IsZero() && at.Before(k.From.Add(-trustSkew)):
		return fmt.Errorf("the key %s, which is of %s, certified an epoch of %s", k.ID(), stamp(k.From), stamp(at))
	}
	return nil
}

// Trust are the deployment keys that a verifier takes for true. They come from
// whoever verifies, never from a vault. It is not changed once it is read, and
// safe for concurrent use.
type Trust struct {
	keys  []*TrustedKey
	notes []string
}

// Rotation is the old deployment key's word for the new one.
type Rotation struct {
	Old, New string // verifier keys
	Time     time.Time
}

// Retirement ends a deployment key.
type Retirement struct {
	Key  string // verifier key
	From time.Time
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (r Rotation) text() string {
	return fmt.Sprintf("%s\nold %s\nnew %s\ntime %s\n", rotationHeader, r.Old, r.New, stamp(r.Time))
}

func (r Retirement) text() string {
	return fmt.Sprintf("%s\nkey %s\nfrom %s\n", retirementHeader, r.Key, stamp(r.From))
}

// Sign returns the note, signed with the old key.
func (r Rotation) Sign(old note.Signer) (string, error) { return signText(r.text(), old) }

// Sign returns the note, signed with the key itself or one that came after it.
func (r Retirement) Sign(by note.Signer) (string, error) { return signText(r.text(), by) }

func signText(text string, by note.Signer) (string, error) {
	b, err := note.Sign(&note.Note{Text: text}, by)
	if err != nil {
		return "", fmt.Errorf("trust: %w", err)
	}
	return string(b), nil
}

// ParseTrust reads a trust file and checks every signature in it.
func ParseTrust(text string) (*Trust, error) {
	if len(text) > MaxTrust {
		return nil, fmt.Errorf("trust: %d bytes, at most %d are read", len(text), MaxTrust)
	}
	t := &Trust{}
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	type numbered struct {
		line int
		text string
	}
	var notes []numbered
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, originPrefix):
			from := i
			for i++; i < len(lines) && lines[i] != ""; i++ {
			}
			for i++; i < len(lines) && strings.HasPrefix(lines[i], "— "); i++ {
			}
			notes = append(notes, numbered{from + 1, strings.Join(lines[from:min(i, len(lines))], "\n") + "\n"})
			i--
		default:
			if err := t.root(line); err != nil {
				return nil, fmt.Errorf("trust: line %d: %w", i+1, err)
			}
		}
	}
	if len(t.keys) == 0 {
		return nil, errors.New("trust: no deployment key (want NAME+HASH+KEY on a line, as \"recorder key new\" writes deployment.pub)")
	}
	for _, n := range notes {
		if err := t.note(n.text); err != nil {
			return nil, fmt.Errorf("trust: the note in line %d: %w", n.line, err)
		}
	}
	return t, nil
}

func (t *Trust) root(line string) error {
	f := strings.Fields(line)
	k, err := t.key(f[0])
	if err != nil {
		return err
	}
	for f = f[1:]; len(f) > 0; f = f[2:] {
		to := map[string]*time.Time{"from": &k.From, "retired": &k.Retired}[f[0]]
		if to == nil || len(f) < 2 || !to.IsZero() {
			return fmt.Errorf("%.80q: want NAME+HASH+KEY [from TIME] [retired TIME]", line)
		}
		if *to, err = time.Parse(time.RFC3339, f[1]); err != nil || to.IsZero() {
			return fmt.Errorf("%.80q: want a time like 2026-03-14T09:00:00Z", f[1])
		}
	}
	k.root = true
	have := t.find(k.Key)
	if have == nil {
		return t.add(k)
	}
	// Several files may name one root; the narrowest holds.
	if k.From.After(have.From) {
		have.From = k.From
	}
	if !k.Retired.IsZero() && (have.Retired.IsZero() || k.Retired.Before(have.Retired)) {
		have.Retired = k.Retired
	}
	return nil
}

func (t *Trust) key(vkey string) (*TrustedKey, error) {
	// What is no public key is not quoted: it may be the private one.
	if strings.HasPrefix(vkey, "PRIVATE+KEY+") {
		return nil, errors.New("is a private key: want the public one, deployment.pub")
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("is no deployment key: %w (want NAME+HASH+KEY, as deployment.pub has it)", err)
	}
	// The parts of a key have more than one spelling in base64; one key is one.
	name, rest, _ := strings.Cut(vkey, "+")
	hash, key, _ := strings.Cut(rest, "+")
	b, err := base64.StdEncoding.Strict().DecodeString(key)
	if err != nil || hash != strings.ToLower(hash) || name+"+"+hash+"+"+base64.StdEncoding.EncodeToString(b) != vkey {
		return nil, fmt.Errorf("the deployment key %.80q is not in its canonical form", vkey)
	}
	return &TrustedKey{Key: vkey, Verifier: v}, nil
}

// add takes a key in. Two keys of one name and hash would make signatures
// ambiguous.
func (t *Trust) add(k *TrustedKey) error {
	if len(t.keys) >= maxTrusted {
		return fmt.Errorf("more than %d keys", maxTrusted)
	}
	for _, other := range t.keys {
		if other.ID() == k.ID() {
			return fmt.Errorf("two keys are called %s", k.ID())
		}
	}
	t.keys = append(t.keys, k)
	return nil
}

func (t *Trust) find(vkey string) *TrustedKey {
	for _, k := range t.keys {
		if k.Key == vkey {
			return k
		}
	}
	return nil
}

func (t *Trust) note(signed string) error {
	if slices.Contains(t.notes, signed) {
		return nil
	}
	text, _, ok := strings.Cut(signed, "\n\n")
	if !ok {
		return errors.New("no signature follows its text")
	}
	lines := strings.Split(text, "\n")
	value := func(i int, name string) string {
		if i >= len(lines) {
			return ""
		}
		v, _ := strings.CutPrefix(lines[i], name+" ")
		return v
	}
	at := func(i int, name string) time.Time {
		when, _ := time.Parse(time.RFC3339, value(i, name))
		return when
	}
	text += "\n"
	var err error
	switch lines[0] {
	case rotationHeader:
		r := Rotation{Old: value(1, "old"), New: value(2, "new"), Time: at(3, "time")}
		if r.Time.IsZero() || r.text() != text {
			return errors.New("is no rotation in its canonical form")
		}
		err = t.rotate(r, signed)
	case retirementHeader:
		r := Retirement{Key: value(1, "key"), From: at(2, "from")}
		if r.From.IsZero() || r.text() != text {
			return errors.New("is no retirement in its canonical form")
		}
		err = t.retire(r, signed)
	default:
		return fmt.Errorf("%.60q: this program reads %s and %s", lines[0], rotationHeader, retirementHeader)
	}
	if err == nil {
		t.notes = append(t.notes, signed)
	}
	return err
}

func (t *Trust) rotate(r Rotation, signed string) error {
	old := t.find(r.Old)
	if old == nil {
		return &unknownKeyError{r.Old}
	}
	for _, k := range t.keys {
		if k.After == r.Old {
			return fmt.Errorf("a second rotation of the key %s: it has been rotated to %s", old.ID(), k.ID())
		}
	}
	if _, err := note.Open([]byte(signed), note.VerifierList(old.Verifier)); err != nil {
		return fmt.Errorf("not signed with the old key %s: %w", old.ID(), err)
	}
	if err := old.holds(r.Time); err != nil {
		return fmt.Errorf("rotation of %s: %w", stamp(r.Time), err)
	}
	if have := t.find(r.New); have != nil {
		if have.After != "" || t.after(old, have) {
			return fmt.Errorf("rotates to the key %s, which is there already", have.ID())
		}
		have.After = r.Old // a root: it is trusted anyway
		return nil
	}
	k, err := t.key(r.New)
	if err != nil {
		return err
	}
	k.From, k.After = r.Time, r.Old
	return t.add(k)
}

func (t *Trust) retire(r Retirement, signed string) error {
	k := t.find(r.Key)
	if k == nil {
		return &unknownKeyError{r.Key}
	}
	var may []note.Verifier
	for _, by := range t.keys {
		if t.after(by, k) {
			may = append(may, by.Verifier)
		}
	}
	if _, err := note.Open([]byte(signed), note.VerifierList(may...)); err != nil {
		return fmt.Errorf("retires the key %s, not signed with it or a key that came after it: %w", k.ID(), err)
	}
	if k.Retired.IsZero() || r.From.Before(k.Retired) {
		k.Retired = r.From
	}
	return nil
}

// after reports whether the key is the other, or came after it.
func (t *Trust) after(k, other *TrustedKey) bool {
	for ; k != nil; k = t.find(k.After) {
		if k == other {
			return true
		}
	}
	return false
}

// unknownKeyError says that a note is about a key that nothing vouches for.
type unknownKeyError struct{ key string }

func (e *unknownKeyError) Error() string {
	return fmt.Sprintf("is about the key %.80q, which is neither a root nor rotated to before", e.key)
}

// Keys returns the keys, roots first, each other one after the one that signed
// for it.
func (t *Trust) Keys() []TrustedKey {
	out := make([]TrustedKey, len(t.keys))
	for i, k := range t.keys {
		out[i] = *k
	}
	return out
}

// Names gives the keys' names with their hashes, which tell keys of one name
// apart.
func (t *Trust) Names() []string {
	var names []string
	for _, k := range t.keys {
		names = append(names, k.ID())
	}
	return names
}

// Find returns the key that the text names: a verifier key, its [TrustedKey.ID],
// its hash or its [Fingerprint].
func (t *Trust) Find(text string) (TrustedKey, bool) {
	for _, k := range t.keys {
		if text == k.Key || text == k.ID() || text == fmt.Sprintf("%08x", k.Verifier.KeyHash()) || text == Fingerprint(k.Key) {
			return *k, true
		}
	}
	return TrustedKey{}, false
}

// Certified checks a certificate: that a trusted key signed it, at a time when
// it held. It returns that key's [TrustedKey.ID].
func (t *Trust) Certified(signed string, c Certificate) (string, error) {
	var late error
	for _, k := range t.keys {
		if _, err := VerifyCertificate(signed, c, note.VerifierList(k.Verifier)); err != nil {
			continue
		}
		if err := k.holds(c.Opened); err != nil {
			late = fmt.Errorf("certificate of epoch %s: %w", c.Epoch, err)
			continue
		}
		return k.ID(), nil
	}
	if late != nil {
		return "", late
	}
	var all []note.Verifier
	for _, k := range t.keys {
		all = append(all, k.Verifier)
	}
	_, err := VerifyCertificate(signed, c, note.VerifierList(all...)) // says why
	if err == nil {
		err = fmt.Errorf("certificate of epoch %s: no trusted deployment key signed it", c.Epoch)
	}
	return "", err
}

// Signed opens a note that a trusted key signed at the given time, and returns
// its text and that key's [TrustedKey.ID].
func (t *Trust) Signed(signed []byte, at time.Time) (text, by string, err error) {
	err = errors.New("no deployment key is trusted")
	for _, k := range t.keys {
		n, e := note.Open(signed, note.VerifierList(k.Verifier))
		if e == nil {
			e = k.holds(at)
		}
		if e == nil {
			return n.Text, k.ID(), nil
		}
		err = e
	}
	return "", "", fmt.Errorf("no trusted deployment key signed it: %w", err)
}

// Accept returns this trust with what a newer trust file adds to it. Nothing of
// the newer file is trusted for standing there: only the notes that a key
// trusted here, or one that came after it, has signed. It refuses a file that
// lacks a note that is known here, for that is another history.
func (t *Trust) Accept(newer *Trust) (*Trust, error) {
	for _, n := range t.notes {
		if !slices.Contains(newer.notes, n) {
			text, _, _ := strings.Cut(n, "\n\n")
			return nil, fmt.Errorf("trust: the newer file is of another history: it lacks a note that is known here: %s", strings.ReplaceAll(text, "\n", ", "))
		}
	}
	out, err := ParseTrust(t.roots())
	if err != nil {
		return nil, err
	}
	for _, n := range newer.notes {
		err := out.note(n)
		var unknown *unknownKeyError
		if errors.As(err, &unknown) {
			continue // of a time before this trust's roots
		}
		if err != nil {
			return nil, fmt.Errorf("trust: %w", err)
		}
	}
	return out, nil
}

// noted reports whether a note says the key's end.
func (t *Trust) noted(k *TrustedKey) bool {
	text := Retirement{k.Key, k.Retired}.text()
	return slices.ContainsFunc(t.notes, func(n string) bool { return strings.HasPrefix(n, text) })
}

// Text returns the trust as a file has it.
func (t *Trust) Text() string {
	return strings.Join(append([]string{t.roots()}, t.notes...), "\n")
}

func (t *Trust) roots() string {
	var b strings.Builder
	for _, k := range t.keys {
		if !k.root {
			continue
		}
		b.WriteString(k.Key)
		if !k.From.IsZero() {
			b.WriteString(" from " + stamp(k.From))
		}
		// An end that a note says stands in the note.
		if !k.Retired.IsZero() && !t.noted(k) {
			b.WriteString(" retired " + stamp(k.Retired))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Fingerprint is a short form of a verifier key to compare by eye or voice: 125
// bits of the SHA-256 of the whole key, five groups of base32.
func Fingerprint(vkey string) string {
	sum := sha256.Sum256([]byte(vkey))
	text := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:25]
	return strings.Join([]string{text[:5], text[5:10], text[10:15], text[15:20], text[20:]}, "-")
}
