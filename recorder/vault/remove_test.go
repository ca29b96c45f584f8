package vault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"verbatim.dev/recorder/record"
)

// Each step of removing an erased key and an expired segment fails, and fails
// although it was done; to do it again ends in the same, and touches nothing
// else.
func TestFolderRemovalFaults(t *testing.T) {
	e := record.Epoch{1}
	key, other := KeyName(e, record.KeyID{1}), KeyName(e, record.KeyID{2})
	segment, err := SegmentName(Segment{Day: "2026-03-14", Gateway: "gw", Epoch: e, First: 1, Last: 2, Class: "standard"})
	if err != nil {
		t.Fatal(err)
	}
	do := map[string]func(v *Folder) error{
		key:     func(v *Folder) error { return v.EraseKey(t.Context(), key) },
		segment: func(v *Folder) error { return v.Expire(t.Context(), segment) },
	}
	for name, remove := range do {
		fill := func(dir string) {
			v := openTest(t, dir, true)
			defer v.Close()
			for _, n := range []string{key, other, segment} {
				if err := v.Create(t.Context(), n, strings.NewReader(n)); err != nil {
					t.Fatal(err)
				}
			}
		}
		dir := t.TempDir()
		fill(dir)
		v, counted := openFault(t, dir, 0, false)
		if err := remove(v); err != nil {
			t.Fatal(err)
		}
		if len(counted.steps) != 2 || !strings.HasPrefix(counted.steps[1], "syncdir ") {
			t.Fatalf("%s: steps %q", name, counted.steps)
		}
		for at := range counted.steps {
			for _, persisted := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %d persisted=%t", strings.SplitN(name, "/", 2)[0], at+1, persisted), func(t *testing.T) {
					dir := t.TempDir()
					fill(dir)
					v, _ := openFault(t, dir, at+1, persisted)
					if err := remove(v); !errors.Is(err, errFault) {
						t.Fatalf("the fault is hidden: %v", err)
					}
					if err := remove(v); err != nil {
						t.Fatal(err)
					}
					_ = v.Close()
					v = openTest(t, dir, true)
					if err := remove(v); err != nil {
						t.Fatal(err)
					}
					want := slices.DeleteFunc([]string{key, other, segment}, func(n string) bool { return n == name })
					if got := names(t, v, ""); !slices.Equal(got, want) {
						t.Errorf("the vault holds %q, want %q", got, want)
					}
				})
			}
		}
	}
}
