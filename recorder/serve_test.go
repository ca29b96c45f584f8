package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/record"
)

// TestServeExample: the annotated example is a configuration, and so it is with
// every alternative in it.
func TestServeExample(t *testing.T) {
	b, err := os.ReadFile("serve.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.NewReplacer("\n#tls:\n  #certificate", "\ntls:\n  certificate", "\n  #key: serve", "\n  key: serve", "\n#revocations", "\nrevocations", "\n    #subjects", "\n    subjects",
		"\nsink: /run", "\n# sink: /run", "\n#pubsub", "\npubsub", "\n  #project", "\n  project", "\n  #topic", "\n  topic", "\n  #subscription", "\n  subscription",
		"\n  #ack_topic", "\n  ack_topic", "\n  #ack_subscription", "\n  ack_subscription", "\n  #shards", "\n  shards", "durability: local ", "durability: published ",
	).Replace(string(b))
	for _, line := range strings.Split(all, "\n") {
		if l := strings.TrimLeft(line, " "); len(l) > 1 && l[0] == '#' && l[1] != ' ' {
			t.Errorf("an alternative is not tried: %q", line)
		}
	}
	for i, text := range []string{string(b), all} {
		dir := t.TempDir()
		path := filepath.Join(dir, "serve.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readServeConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		if c.Keyset != filepath.Join(dir, "tenant.json") || (c.Sink == "/run/verbatim/sink.sock") != (i == 0) || (c.PubSub == nil) != (i == 0) || c.limit != 256<<20 || c.keep == 0 {
			t.Errorf("read %+v", c)
		}
		issuers, err := c.issuers()
		if err != nil {
			t.Fatal(err)
		}
		v, err := auth.New(t.Context(), auth.Config{Issuers: issuers}, nil)
		if err != nil {
			t.Fatal(err)
		}
		v.Close()
	}
}

func TestServeConfigErrors(t *testing.T) {
	b, err := os.ReadFile("serve.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ old, to, want string }{
		"unknown key":     {"sink:", "sinks:", "unknown field"},
		"no name":         {"name: auditors-1", "name: Auditors", "stands in every record"},
		"in the clear":    {"127.0.0.1:8470", "0.0.0.0:8470", "in the clear"},
		"no port":         {"127.0.0.1:8470", "127.0.0.1", "want ADDRESS:PORT"},
		"no keyset":       {"keyset: tenant.json", "", "keyset (the tenant's private one"},
		"size":            {"256MiB", "256", "journal.limit"},
		"keep":            {"400d", "ever", "retention.keep"},
		"role":            {"  viewer:", "  reader:", "want auditor or viewer"},
		"foreign issuer":  {"corp/security", "other/security", "name of an issuer"},
		"unqualified":     {"corp/security", "security", "want ISSUER/NAME"},
		"no groups claim": {"    groups_claim: groups\n", "", "has no groups_claim"},
		"nobody":          {"roles:", "unused: 1\nroles:", "unknown field"},
		"no transport":    {"sink: /run/verbatim/sink.sock", "", "or give pubsub"},
		"two transports":  {"sink: /run/verbatim/sink.sock", "sink: /s\npubsub: {project: p, topic: t1t, subscription: sss, ack_topic: aaa, ack_subscription: bbb}", "exclude each other"},
		"a whole name":    {"sink: /run/verbatim/sink.sock", "pubsub: {project: p, topic: projects/p/topics/t, subscription: sss, ack_topic: aaa, ack_subscription: bbb}", "pubsub.topic"},
		"one topic":       {"sink: /run/verbatim/sink.sock", "pubsub: {project: p, topic: aaa, subscription: sss, ack_topic: aaa, ack_subscription: bbb}", "of their own"},
		"published":       {"durability: local", "durability: published", "goes with pubsub only"},
		"durability":      {"durability: local", "durability: eternal", "want local or published"},
		"interval":        {"cut_interval: 5s", "cut_interval: soon", "journal.cut_interval"},
	} {
		text := strings.Replace(string(b), test.old, test.to, 1)
		path := filepath.Join(t.TempDir(), "serve.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readServeConfig(path); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestRoles(t *testing.T) {
	c := &serveConfig{Roles: map[string]serveRole{
		"auditor": {Groups: []string{"corp/security"}, Subjects: []string{"ci/bot"}},
		"viewer":  {Groups: []string{"corp/analysts", "corp/security"}},
	}}
	for _, test := range []struct {
		p    record.Principal
		want access.Role
	}{
		{record.Principal{Issuer: "corp", Subject: "a", Groups: []string{"corp/x", "corp/security"}}, access.Auditor},
		{record.Principal{Issuer: "corp", Subject: "a", Groups: []string{"corp/analysts"}}, access.Viewer},
		{record.Principal{Issuer: "ci", Subject: "bot"}, access.Auditor},
		{record.Principal{Issuer: "corp", Subject: "bot"}, ""},
		{record.Principal{Issuer: "ci", Subject: "a", Groups: []string{"ci/security"}}, ""},
		{record.Principal{}, ""},
	} {
		if got := c.role(&auth.Identity{Principal: test.p}); got != test.want {
			t.Errorf("%+v has the role %q, want %q", test.p, got, test.want)
		}
	}
}
