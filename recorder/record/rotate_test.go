package record

import (
	"bytes"
	"errors"
	"testing"
)

// TestRotateTenant seals before and after a rotation, as gateways do that have
// read the public keyset at their start.
func TestRotateTenant(t *testing.T) {
	old, err := NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := RotateTenant(old)
	if err != nil {
		t.Fatal(err)
	}
	// Through files, as it goes in truth.
	var private, public bytes.Buffer
	for _, w := range []struct {
		private bool
		to      *bytes.Buffer
	}{{true, &private}, {false, &public}} {
		b, err := MarshalTenant(fresh, w.private)
		if err != nil {
			t.Fatal(err)
		}
		w.to.Write(b)
	}
	if fresh, err = ReadTenant(&private, true); err != nil {
		t.Fatal(err)
	}
	given, err := ReadTenant(&public, false)
	if err != nil {
		t.Fatal(err)
	}
	before, err := old.Public()
	if err != nil {
		t.Fatal(err)
	}
	if a, b := before.KeysetInfo().GetPrimaryKeyId(), given.KeysetInfo().GetPrimaryKeyId(); a == b || len(given.KeysetInfo().GetKeyInfo()) != 2 {
		t.Errorf("primary %d and then %d, of %d keys", a, b, len(given.KeysetInfo().GetKeyInfo()))
	}
	both, err := NewOpener(fresh)
	if err != nil {
		t.Fatal(err)
	}
	onlyOld, err := NewOpener(old)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(SealerConfig{Epoch: Epoch{1}, Tenant: before})
	if err != nil {
		t.Fatal(err)
	}
	f, key := sealed(t, s, "before")
	for _, o := range []*Opener{both, onlyOld} {
		if err := o.Add(Epoch{1}, &key); err != nil {
			t.Fatal(err)
		}
		if b, err := o.Open(Epoch{1}, &f); err != nil || string(b) != "before" {
			t.Errorf("opened %q, %v", b, err)
		}
	}
	if s, err = NewSealer(SealerConfig{Epoch: Epoch{2}, Tenant: given}); err != nil {
		t.Fatal(err)
	}
	f, key = sealed(t, s, "after")
	if err := both.Add(Epoch{2}, &key); err != nil {
		t.Fatal(err)
	}
	if b, err := both.Open(Epoch{2}, &f); err != nil || string(b) != "after" {
		t.Errorf("opened %q, %v", b, err)
	}
	if err := onlyOld.Add(Epoch{2}, &key); err == nil {
		t.Error("the keyset of before the rotation unwraps what was wrapped after it")
	}
	if _, err := onlyOld.Open(Epoch{2}, &f); !errors.Is(err, ErrNoKey) {
		t.Errorf("error %v", err)
	}
	if _, err := RotateTenant(given); err == nil {
		t.Error("a public keyset was rotated")
	}
}
