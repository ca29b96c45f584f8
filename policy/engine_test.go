package policy

import (
	"context"
	"testing"
)

func TestX(t *testing.T) {
	e, err := New(context.Background(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(e.Digest(), e.Current().Findings())
}
