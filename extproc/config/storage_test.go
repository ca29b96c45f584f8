package config

import "testing"

func TestStorageURL(t *testing.T) {
	const google = "https://bigquerystorage.googleapis.com"
	for _, c := range []struct {
		in   Upstream
		want string
	}{
		{Upstream{REST: "https://bigquery.googleapis.com"}, google},
		{Upstream{REST: "https://bigquery.googleapis.com/"}, google},
		{Upstream{REST: "https://bigquery.googleapis.com", Storage: "none"}, ""},
		{Upstream{REST: "https://bigquery.eu.rep.googleapis.com"}, ""},
		{Upstream{REST: "http://127.0.0.1:9050"}, ""}, // its credential is not for Google
		{Upstream{REST: "http://127.0.0.1:9050", Storage: "http://127.0.0.1:9060"}, "http://127.0.0.1:9060"},
	} {
		if got := c.in.StorageURL(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.in, got, c.want)
		}
	}
}
