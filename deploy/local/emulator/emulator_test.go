package emulator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"golang.org/x/oauth2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	"verbatim.dev/deploy/local/tools"
)

const testToken = "the-gateway's-own-token"

// run starts the emulator for a test.
func run(t *testing.T) (*Emulator, tools.Tools) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the emulator")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	with, err := tools.EnsureEmulator(ctx, "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	log := &tools.Tail{}
	e, err := Start(ctx, RunConfig{Tools: with, Double: Config{Token: testToken}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("emulator:\n%s", log)
		}
	})
	return e, with
}

func TestPythonClient(t *testing.T) {
	e, with := run(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, with.Python, filepath.Join("testdata", "client.py"), e.URL, testToken)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, errs.String())
	}
	want := `resumable py-resumable py-resumable
multipart DONE
insertAll []
count [2001]
list 5
parameters [7, 7]
anonymous 2
pages 25000
jobs.query BadRequest True
jobs.insert BadRequest True
synthetic 982991
dry run DONE
header [(1, 'x')]
`
	if got := string(out); got != want {
		t.Errorf("got\n%s\nwant\n%s\n%s", got, want, errs.String())
	}
	uploads := e.Double.Uploads()
	if len(uploads) != 3 || uploads[0].Kind != "resumable" || uploads[0].JobID != "py-resumable" || uploads[0].Discarded {
		t.Errorf("%+v", uploads)
	}
}

func TestGoClient(t *testing.T) {
	e, _ := run(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// Without a path in the endpoint, Go's paths have no prefix.
	for i, endpoint := range []string{e.URL, e.URL + "/bigquery/v2/"} {
		c, err := bigquery.NewClient(ctx, "test-project", option.WithEndpoint(endpoint), option.WithTokenSource(oauth2.StaticTokenSource(&oauth2.Token{AccessToken: testToken})))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ds := c.Dataset(fmt.Sprintf("go%d", i))
		if err := ds.Create(ctx, nil); err != nil {
			t.Fatal(err)
		}
		load := func(r io.Reader, into *bigquery.Table) {
			t.Helper()
			source := bigquery.NewReaderSource(r)
			source.Schema = bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}}
			j, err := into.LoaderFrom(source).Run(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if s, err := j.Wait(ctx); err != nil || s.Err() != nil {
				t.Fatal(err, s)
			}
		}
		load(strings.NewReader("1\n2\n"), ds.Table("t"))
		// More than 16 MB goes in resumable pieces.
		load(strings.NewReader(strings.Repeat("1\n", 9_000_000)), c.Dataset(DiscardDataset).Table("t"))
		it, err := c.Query(fmt.Sprintf("SELECT a FROM go%d.t ORDER BY a", i)).Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for {
			var row []bigquery.Value
			if err := it.Next(&row); errors.Is(err, iterator.Done) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 2 {
			t.Errorf("%d rows", n)
		}
		var g *googleapi.Error
		if _, err := c.Query("SELECT nothing_such").Read(ctx); !errors.As(err, &g) || g.Code != 400 {
			t.Errorf("bad query: %v", err)
		}
	}
	uploads := e.Double.Uploads()
	if len(uploads) != 4 || uploads[1].Bytes != 18_000_000 || uploads[1].Requests < 2 || !uploads[1].Discarded || uploads[0].Kind != "multipart" {
		t.Errorf("%+v", uploads)
	}
}

func TestJobsKeepLabelsAndScriptsHaveChildren(t *testing.T) {
	e, _ := run(t)
	send := func(method, path, body string) string {
		t.Helper()
		_, b := do(t, method, e.URL+"/bigquery/v2/projects/p/"+path, strings.NewReader(body), "Authorization", "Bearer "+testToken, "Content-Type", "application/json")
		return string(b)
	}
	send("POST", "jobs", `{"jobReference":{"jobId":"script"},"configuration":{"labels":{"a":"b"},"query":{"query":"DECLARE x INT64 DEFAULT 1; SELECT x AS y;","useLegacySql":false}}}`)
	if got, want := send("GET", "jobs/script?fields=configuration(labels),statistics(parentJobId)", ""), `{"configuration":{"labels":{"a":"b"}},"statistics":{}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	const child = "script_job_script_0"
	if got, want := send("GET", "jobs?parentJobId=script&fields=jobs(jobReference(jobId),configuration(labels),statistics(parentJobId))", ""),
		`{"jobs":[{"configuration":{},"jobReference":{"jobId":"`+child+`"},"statistics":{"parentJobId":"script"}}]}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := send("GET", "queries/"+child+"?fields=jobReference(jobId),rows", ""), `{"jobReference":{"jobId":"`+child+`"},"rows":[{"f":[{"v":"1"}]}]}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := send("GET", "jobs?parentJobId="+child, ""), `{"jobs":[],"kind":"bigquery#jobList"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestBQ(t *testing.T) {
	bq, err := exec.LookPath("bq")
	if err != nil {
		t.Skip("no bq here")
	}
	e, _ := run(t)
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(testToken), 0o600); err != nil {
		t.Fatal(err)
	}
	csv := filepath.Join(dir, "rows.csv")
	if err := os.WriteFile(csv, []byte("1,x\n2,y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, bq, append([]string{"--api", e.URL, "--project_id", "test-project", "--quiet", "--headless"}, args...)...)
		cmd.Env = append(os.Environ(), "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE="+token, "CLOUDSDK_CONFIG="+filepath.Join(dir, "gcloud"), "HOME="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"mk", "--dataset", "bq"}, "successfully created"},
		{[]string{"load", "--source_format=CSV", "bq.t", csv, "a:INTEGER,b:STRING"}, ""},
		{[]string{"query", "--use_legacy_sql=false", "--format=csv", "SELECT COUNT(*) AS n FROM bq.t"}, "n\n2\n"},
		{[]string{"head", "--format=csv", "bq.t"}, "1,x"},
	} {
		out, err := do(step.args...)
		if err != nil || !strings.Contains(out, step.want) {
			t.Fatalf("bq %q: %v\n%s", step.args, err, out)
		}
	}
	if out, err := do("query", "--use_legacy_sql=false", "SELECT nothing_such"); err == nil || !strings.Contains(out, "nothing_such") {
		t.Errorf("bad query: %v\n%s", err, out)
	}
}

func TestCloseEndsAStuckEmulator(t *testing.T) {
	e, _ := run(t)
	// An open connection makes it ignore SIGTERM.
	res, err := http.Get(e.Double.cfg.Backend + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	start := time.Now()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
	select {
	case <-e.Done():
	default:
		t.Error("the process still runs")
	}
}

func TestStartTellsWhy(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	program := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho the reason >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Start(ctx, RunConfig{Tools: tools.Tools{BQEmulator: program, Home: t.TempDir()}})
	if err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("got %v", err)
	}
}
