package index

import (
	"fmt"
	"reflect"
	"testing"
)

// full is a row with something in every column.
func full(n int) *Row {
	r := &Row{}
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		text := fmt.Sprintf("%s %d", v.Type().Field(i).Name, n)
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(text)
		case reflect.Int64, reflect.Int32:
			f.SetInt(int64(1000 + i + n))
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{text, "b"}))
		case reflect.Pointer:
			p := reflect.New(f.Type().Elem())
			if p.Elem().Kind() == reflect.Int64 {
				p.Elem().SetInt(int64(n)) // zero is not null
			}
			f.Set(p)
		default:
			panic(f.Kind())
		}
	}
	return r
}

func TestRoundTrip(t *testing.T) {
	rows := []*Row{full(0), {}, full(1), {Exchange: "x", Received: 7}}
	b, err := encode(rows, packed)
	if err != nil {
		t.Fatal(err)
	}
	var got []*Row
	if err := decode(b, func(r *Row) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(rows) {
		t.Fatalf("%d rows, want %d", len(got), len(rows))
	}
	for i := range rows {
		if d := differences(rows[i], got[i]); len(d) > 0 {
			t.Errorf("row %d differs in %q: %+v", i, d, got[i])
		}
	}
	again, err := encode(rows, packed)
	if err != nil || string(again) != string(b) {
		t.Errorf("the same rows gave other bytes, %v", err)
	}
	if d := differences(full(0), full(1)); len(d) != reflect.TypeFor[Row]().NumField()-3 { // two flags, and the cache's
		t.Errorf("%d columns are said to differ: %q", len(d), d)
	}
}

func TestFileNames(t *testing.T) {
	f := fileID{Day: "2026-03-14", First: 65537}
	f.Epoch[0] = 7
	if got, err := parseFile(f.name()); err != nil || got != f {
		t.Errorf("%s: %+v, %v", f.name(), got, err)
	}
	for _, bad := range []string{"", "exchanges/x.parquet", "exchanges/dt=2026-3-14/" + f.Epoch.String() + "-00000000000000000001.parquet", f.name() + "x", "state/files.json", "exchanges/dt=2026-03-14/" + f.Epoch.String() + "-1.parquet"} {
		if _, err := parseFile(bad); err == nil {
			t.Errorf("%q was taken for a file", bad)
		}
	}
}
