package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"time"
)

var lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Session returns the session of an identity: 52 characters of lower-case base32,
// the HMAC-SHA256 of issuer, subject and run, or the UTC day of now where the token
// proves no run. The same key makes every replica agree on it. The token's id has no
// part in it: it changes at each refresh.
func Session(key []byte, id *Identity, now time.Time) string {
	kind, run := "run", id.Run
	if run == "" {
		kind, run = "day", now.UTC().Format(time.DateOnly)
	}
	mac := hmac.New(sha256.New, key)
	// With its length before it, no part can pass for another.
	for _, part := range []string{"verbatim session 1", id.Principal.URL, id.Principal.Subject, kind, run} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		mac.Write(n[:])
		mac.Write([]byte(part))
	}
	return lower.EncodeToString(mac.Sum(nil))
}
