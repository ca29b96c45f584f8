package bigquery

import (
	"fmt"
	"sync"
	"testing"

	"verbatim.dev/recorder/record"
)

func TestOwners(t *testing.T) {
	o := NewOwners(100)
	a, b := Owner{"corp", "a"}, Owner{"corp", "b"}
	job := JobKey(record.Job{Project: "p", Location: "US", ID: "j"})
	for range 2 {
		if !o.Put(job, a) {
			t.Fatal("the maker is refused")
		}
	}
	if o.Put(JobKey(record.Job{Project: "p", Location: "EU", ID: "j"}), b) {
		t.Error("another caller took the job over in another location")
	}
	if got, ok := o.Owner(job); !ok || got != a {
		t.Errorf("owner is %v, %v", got, ok)
	}
	if owns, known := o.Owns(job, b); owns || !known {
		t.Errorf("b: %v, %v", owns, known)
	}
	if owns, known := o.Owns(job, Owner{"other", "a"}); owns || !known {
		t.Errorf("the same subject of another issuer: %v, %v", owns, known)
	}
	if owns, known := o.Owns(UploadKey("p\x00j"), a); owns || known {
		t.Errorf("an upload of the same name: %v, %v", owns, known)
	}
	if _, known := o.Owns(SessionKey("p", "j"), a); known {
		t.Error("a session of the same name is known")
	}
	anon := TableKey(Table{"p", "_Abc", "Anon1"})
	if !o.Put(anon, a) || !o.Put(TableKey(Table{"p", "_abc", "anon1"}), b) {
		t.Fatal("a table has one owner only")
	}
	for _, who := range []Owner{a, b} {
		if owns, _ := o.Owns(anon, who); !owns {
			t.Errorf("%v does not own the table", who)
		}
	}
	for i := range 3 * maxOwners {
		o.Put(anon, Owner{"corp", fmt.Sprint(i)})
	}
	if owns, _ := o.Owns(anon, a); owns || len(o.find(anon)) != maxOwners {
		t.Errorf("the set of owners is not bounded: %d", len(o.find(anon)))
	}
}

func TestOwnersAreBounded(t *testing.T) {
	o := NewOwners(100)
	a := Owner{"corp", "a"}
	used := UploadKey("used")
	o.Put(used, a)
	for i := range 10_000 {
		o.Put(UploadKey(fmt.Sprint(i)), a)
		if owns, _ := o.Owns(used, a); !owns {
			t.Fatalf("what is in use is forgotten after %d", i)
		}
		if n := len(o.young) + len(o.old); n > 100 {
			t.Fatalf("%d things are held", n)
		}
	}
	if _, known := o.Owns(UploadKey("1"), a); known {
		t.Error("nothing is forgotten")
	}
	if _, known := o.Owns(UploadKey("9999"), a); !known {
		t.Error("the last is forgotten")
	}
}

func TestOwnersConcurrently(t *testing.T) {
	o := NewOwners(64)
	key := UploadKey("contested")
	var wg sync.WaitGroup
	wins := make(chan string, 100)
	for i := range 100 {
		wg.Go(func() {
			who := Owner{"corp", fmt.Sprint(i)}
			if o.Put(key, who) {
				wins <- who.Subject
			}
			o.Put(UploadKey(fmt.Sprint(i%20)), who)
			o.Owns(UploadKey(fmt.Sprint(i%30)), who)
		})
	}
	wg.Wait()
	if len(wins) != 1 {
		t.Errorf("%d callers own one upload", len(wins))
	}
}
