package record

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/hybrid"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

const (
	sealContext = "verbatim/frame/1"
	wrapContext = "verbatim/key/1"
	keySize     = 32
)

// Sealer seals bodies with a data key for each session of one epoch. The data
// keys are wrapped to the tenant's public key (HPKE, RFC 9180) with no call to
// a key service, and are forgotten with the process. It is safe for concurrent
// use.
type Sealer struct {
	epoch Epoch
	limit int

	mu   sync.Mutex
	wrap tink.HybridEncrypt
	// young and old are two generations: when young is full it becomes old, and
	// what old held is forgotten. A session that comes back gets a new key.
	young, old map[string]*DataKey
}

// DataKey is the data key of one session in one epoch. Who holds it can seal
// with it even when its sealer has forgotten it. It is safe for concurrent use.
type DataKey struct {
	epoch Epoch
	once  sync.Once // guards the making of the four below
	id    KeyID
	aead  cipher.AEAD // AES-256-GCM, its random nonce in front: the form of Tink's
	frame *Frame
	err   error

	ready     atomic.Bool // made, without an error
	announced atomic.Bool
}

// SealerConfig configures a [Sealer].
type SealerConfig struct {
	Epoch Epoch
	// Tenant is the tenant's public keyset for hybrid encryption.
	Tenant *keyset.Handle
	// Sessions is how many data keys are kept, 4096 where it is 0.
	Sessions int
}

// NewSealer returns a sealer for one epoch.
func NewSealer(c SealerConfig) (*Sealer, error) {
	if c.Sessions <= 0 {
		c.Sessions = 4096
	}
	s := &Sealer{epoch: c.Epoch, limit: (c.Sessions + 1) / 2}
	if err := s.SetTenant(c.Tenant); err != nil {
		return nil, err
	}
	return s, nil
}

// SetTenant makes the sealer wrap to another public keyset from now on. Every
// session gets a fresh data key: what the one before it sealed, and what is
// being sealed with it right now, stays with the key before. After an error
// nothing has changed.
func (s *Sealer) SetTenant(public *keyset.Handle) error {
	if public == nil {
		return errors.New("sealer: no tenant keyset")
	}
	wrap, err := hybrid.NewHybridEncrypt(public)
	if err != nil {
		return fmt.Errorf("sealer: the tenant's keyset is no public keyset for hybrid encryption: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrap, s.young, s.old = wrap, map[string]*DataKey{}, map[string]*DataKey{}
	return nil
}

// DataKey returns the session's data key and makes it where there is none. The
// key is wrapped outside the sealer's lock, so a new session does not hold up
// the others.
func (s *Sealer) DataKey(session string, now time.Time) (*DataKey, error) {
	s.mu.Lock()
	k := s.young[session]
	if k == nil {
		if k = s.old[session]; k == nil {
			k = &DataKey{epoch: s.epoch}
		}
		if len(s.young) >= s.limit {
			s.old, s.young = s.young, make(map[string]*DataKey, s.limit)
		}
		s.young[session] = k
	}
	wrap := s.wrap
	s.mu.Unlock()
	k.once.Do(func() { k.err = k.make(wrap, now) })
	if k.err != nil {
		s.mu.Lock() // the next call tries again with another key
		if s.young[session] == k {
			delete(s.young, session)
		}
		if s.old[session] == k {
			delete(s.old, session)
		}
		s.mu.Unlock()
		return nil, k.err
	}
	return k, nil
}

func (k *DataKey) make(wrap tink.HybridEncrypt, now time.Time) error {
	var raw [keySize]byte
	defer clear(raw[:])
	if _, err := rand.Read(raw[:]); err != nil {
		return fmt.Errorf("data key: %w", err)
	}
	if _, err := rand.Read(k.id[:]); err != nil {
		return fmt.Errorf("data key: %w", err)
	}
	block, err := aes.NewCipher(raw[:])
	if err == nil {
		k.aead, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		return fmt.Errorf("data key: %w", err)
	}
	wrapped, err := wrap.Encrypt(raw[:], wrapInfo(k.epoch, k.id))
	if err != nil {
		return fmt.Errorf("data key: wrap: %w", err)
	}
	k.frame = &Frame{Kind: KindKey, Key: k.id, Time: now, Body: wrapped}
	if _, err := k.frame.Encode(nil); err != nil {
		return fmt.Errorf("data key: %w", err)
	}
	k.ready.Store(true)
	return nil
}

// ID returns the key's name.
func (k *DataKey) ID() KeyID { return k.id }

// Announce returns the encoded key frame on the first call of all and nil on
// every later one. The frame must be stored in front of the first record that
// is sealed with the key.
func (k *DataKey) Announce() *Frame {
	if k.announced.Swap(true) {
		return nil
	}
	return k.frame
}

// Seal sets the frame's key and replaces its plain body with the sealed form.
// Everything else in the frame's header must be final.
func (k *DataKey) Seal(f *Frame) error {
	f.Key = k.id
	f.Body = k.aead.Seal(nil, nil, f.Body, sealAAD(k.epoch, f))
	return nil
}

// Append does what Seal and [Frame.Encode] do, with no copy of the body in
// between: it appends the stored form of the frame, whose body is still plain,
// to dst and returns the extended slice. Afterwards the frame's body is the
// sealed one within dst.
func (k *DataKey) Append(dst []byte, f *Frame) ([]byte, error) {
	f.Key = k.id
	if err := f.check(len(f.Body) + sealCost); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, f.length(len(f.Body)+sealCost))
	dst = f.header(dst)
	body := len(dst)
	dst = k.aead.Seal(dst, nil, f.Body, sealAAD(k.epoch, f))
	f.Body = dst[body:len(dst):len(dst)]
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	f.raw = dst[start:len(dst):len(dst)]
	return dst, nil
}

// Key returns the id of the session's data key. When the key is new, fresh is
// the key frame that must be stored in front of the first record sealed with
// it, and is nil otherwise.
func (s *Sealer) Key(session string, now time.Time) (id KeyID, fresh *Frame, err error) {
	k, err := s.DataKey(session, now)
	if err != nil {
		return KeyID{}, nil, err
	}
	return k.id, k.Announce(), nil
}

// Seal replaces the frame's plain body with its sealed form under the
// session's key, whose id it must already carry (see [Sealer.Key]). It fails
// when the sealer has forgotten the key since: with many sessions at once,
// hold the key itself ([Sealer.DataKey]).
func (s *Sealer) Seal(f *Frame, session string) error {
	s.mu.Lock()
	young, old := s.young[session], s.old[session]
	s.mu.Unlock()
	for _, k := range []*DataKey{young, old} {
		// One that is still being made cannot be the one that Key returned.
		if k != nil && k.ready.Load() && k.id == f.Key {
			return k.Seal(f)
		}
	}
	return fmt.Errorf("seal: data key %x of the session is gone", f.Key)
}

func wrapInfo(e Epoch, id KeyID) []byte {
	return append(append([]byte(wrapContext), e[:]...), id[:]...)
}

func sealAAD(e Epoch, f *Frame) []byte {
	b := make([]byte, 0, len(sealContext)+len(e)+fixedHeader+MaxClass)
	b = append(b, sealContext...)
	b = append(b, e[:]...)
	return f.header(b)
}

// ErrNoKey means that a body cannot be opened because its wrapped data key is
// not at hand: erased, or not yet stored.
var ErrNoKey = errors.New("data key is not at hand")

// Opener opens sealed bodies. It is safe for concurrent use.
type Opener struct {
	unwrap tink.HybridDecrypt

	mu   sync.Mutex
	keys map[openKey]*subtle.AESGCM
}

type openKey struct {
	epoch Epoch
	id    KeyID
}

// NewOpener returns an opener for the tenant's private keyset.
func NewOpener(tenant *keyset.Handle) (*Opener, error) {
	unwrap, err := hybrid.NewHybridDecrypt(tenant)
	if err != nil {
		return nil, fmt.Errorf("opener: the keyset is no private keyset for hybrid encryption: %w", err)
	}
	return &Opener{unwrap: unwrap, keys: map[openKey]*subtle.AESGCM{}}, nil
}

// Add takes in a key frame of the epoch.
func (o *Opener) Add(e Epoch, f *Frame) error {
	if f.Kind != KindKey {
		return fmt.Errorf("a %s frame carries no key", f.Kind)
	}
	o.mu.Lock()
	_, have := o.keys[openKey{e, f.Key}]
	o.mu.Unlock()
	if have {
		return nil
	}
	raw, err := o.unwrap.Decrypt(f.Body, wrapInfo(e, f.Key))
	if err != nil {
		return fmt.Errorf("data key %x: cannot be unwrapped with this keyset: %w", f.Key, err)
	}
	aead, err := subtle.NewAESGCM(raw)
	if err != nil {
		return fmt.Errorf("data key %x: %w", f.Key, err)
	}
	o.mu.Lock()
	o.keys[openKey{e, f.Key}] = aead
	o.mu.Unlock()
	return nil
}

// Open returns the frame's plain body, or an error that wraps [ErrNoKey].
func (o *Opener) Open(e Epoch, f *Frame) ([]byte, error) {
	if f.Key == (KeyID{}) {
		return f.Body, nil
	}
	o.mu.Lock()
	aead := o.keys[openKey{e, f.Key}]
	o.mu.Unlock()
	if aead == nil {
		return nil, fmt.Errorf("record %d: %w: %x", f.Sequence, ErrNoKey, f.Key)
	}
	b, err := aead.Decrypt(f.Body, sealAAD(e, f))
	if err != nil {
		return nil, fmt.Errorf("record %d: the sealed body does not open: %w", f.Sequence, err)
	}
	return b, nil
}

// NewTenant makes a fresh tenant keyset: HPKE with X25519, HKDF-SHA256 and
// AES-256-GCM.
func NewTenant() (*keyset.Handle, error) {
	h, err := keyset.NewHandle(hybrid.DHKEM_X25519_HKDF_SHA256_HKDF_SHA256_AES_256_GCM_Key_Template())
	if err != nil {
		return nil, fmt.Errorf("tenant keyset: %w", err)
	}
	return h, nil
}

// RotateTenant returns the private keyset with a fresh key as its primary. The
// older keys stay in it, and open what was wrapped to them.
func RotateTenant(private *keyset.Handle) (*keyset.Handle, error) {
	if _, err := hybrid.NewHybridDecrypt(private); err != nil {
		return nil, fmt.Errorf("tenant keyset: no private keyset for hybrid encryption: %w", err)
	}
	m := keyset.NewManagerFromHandle(private)
	id, err := m.Add(hybrid.DHKEM_X25519_HKDF_SHA256_HKDF_SHA256_AES_256_GCM_Key_Template())
	if err == nil {
		err = m.SetPrimary(id)
	}
	var h *keyset.Handle
	if err == nil {
		h, err = m.Handle()
	}
	if err != nil {
		return nil, fmt.Errorf("tenant keyset: %w", err)
	}
	return h, nil
}

// MarshalTenant returns the keyset as JSON: with private, the whole keyset in
// clear, to be kept like a password; without, the public part for gateways.
func MarshalTenant(h *keyset.Handle, private bool) ([]byte, error) {
	var b bytes.Buffer
	w := keyset.NewJSONWriter(&b)
	if private {
		if err := insecurecleartextkeyset.Write(h, w); err != nil {
			return nil, fmt.Errorf("tenant keyset: %w", err)
		}
		return b.Bytes(), nil
	}
	pub, err := h.Public()
	if err != nil {
		return nil, fmt.Errorf("tenant keyset: %w", err)
	}
	if err := pub.WriteWithNoSecrets(w); err != nil {
		return nil, fmt.Errorf("tenant keyset: %w", err)
	}
	return b.Bytes(), nil
}

// ReadTenant reads a keyset that MarshalTenant wrote. With private false it
// refuses a keyset that holds secrets: a gateway must not have them.
func ReadTenant(r io.Reader, private bool) (*keyset.Handle, error) {
	var h *keyset.Handle
	var err error
	if private {
		h, err = insecurecleartextkeyset.Read(keyset.NewJSONReader(r))
	} else {
		h, err = keyset.ReadWithNoSecrets(keyset.NewJSONReader(r))
	}
	if err != nil {
		return nil, fmt.Errorf("tenant keyset: %w", err)
	}
	return h, nil
}
