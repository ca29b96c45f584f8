package bigquery

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
)

// Inflate returns the plain bytes of a gzipped body, at most limit. More than
// one gzip member, or bytes after it, are refused: readers differ on them. An
// error is always a *[Refusal]. No more than limit bytes are ever held.
func Inflate(body []byte, limit int) ([]byte, error) {
	src := bytes.NewReader(body)
	z, err := gzip.NewReader(src)
	if err != nil {
		return nil, invalid("gzip", "The body says that it is gzip and is not.")
	}
	defer z.Close()
	z.Multistream(false)
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(z, int64(limit)+1))
	if n > int64(limit) {
		return nil, tooLarge("body_large", fmt.Sprintf("The body is larger than %d bytes when inflated.", limit))
	}
	if err != nil {
		return nil, invalid("gzip", "The gzipped body is damaged or ends early.")
	}
	if src.Len() > 0 {
		return nil, invalid("gzip", "Something follows the gzipped body: send one gzip member.")
	}
	return out.Bytes(), nil
}

func asRefusal(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return invalid("body", "The body cannot be read.")
}
