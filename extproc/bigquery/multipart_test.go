package bigquery

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"strings"
	"testing"
)

const job1 = `{"configuration": {"load": {"destinationTable": {"datasetId": "d", "tableId": "t"}}}}`

func pythonUpload(nl string) string {
	return "--==b==" + nl + "content-type: application/json; charset=UTF-8" + nl + nl + job1 + nl + "--==b==" + nl + "content-type: */*" + nl + nl + "1,2" + nl + "3,--==b" + nl + "--==b==--"
}

func TestPart(t *testing.T) {
	for name, body := range map[string]string{
		"python":       pythonUpload("\r\n"),
		"bare LF":      pythonUpload("\n"),
		"leading CRLF": "\r\n" + pythonUpload("\r\n"),
		"padding":      strings.Replace(pythonUpload("\r\n"), "--==b==\r\n", "--==b== \t\r\n", 1),
		"more headers": strings.Replace(pythonUpload("\r\n"), "content-type", "MIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\ncontent-type", 1),
	} {
		for split := range len(body) {
			p, err := NewPart(`multipart/related; boundary="==b=="`, 1000)
			if err != nil {
				t.Fatal(err)
			}
			done, err := p.Write([]byte(body[:split]))
			rest := body[split:]
			if err == nil && !done {
				done, err = p.Write([]byte(rest))
				rest = ""
			}
			if err != nil || !done || string(p.JSON()) != job1 || p.ContentType() != "application/json; charset=UTF-8" {
				t.Fatalf("%s at %d: %v, %v, JSON %q", name, split, done, err, p.JSON())
			}
			upstream := append(p.Replace([]byte(`{"new":1}`)), rest...)
			_, params, _ := mime.ParseMediaType(p.UpstreamContentType())
			r := multipart.NewReader(bytes.NewReader(upstream), params["boundary"])
			first, err := r.NextPart()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if b, _ := io.ReadAll(first); string(b) != `{"new":1}` {
				t.Fatalf("%s at %d: upstream's first part is %q", name, split, b)
			}
			second, err := r.NextPart()
			if err != nil {
				t.Fatalf("%s at %d: %v in %q", name, split, err, upstream)
			}
			if b, err := io.ReadAll(second); err != nil || !strings.HasPrefix(string(b), "1,2") || !strings.HasSuffix(string(b), "3,--==b") {
				t.Fatalf("%s at %d: media is %q, %v", name, split, b, err)
			}
		}
	}
}

func TestPartByteByByte(t *testing.T) {
	body := pythonUpload("\r\n")
	p, _ := NewPart("multipart/related; boundary=\"==b==\"", len(job1))
	for i := range len(body) {
		done, err := p.Write([]byte{body[i]})
		if err != nil {
			t.Fatal(err)
		}
		if done {
			if string(p.JSON()) != job1 || !strings.HasSuffix(body[:i+1], "--==b==\r\n") {
				t.Fatalf("done at %d with %q", i, p.JSON())
			}
			return
		}
	}
	t.Fatal("never done")
}

func TestPartRefuses(t *testing.T) {
	whole := pythonUpload("\r\n")
	for name, c := range map[string]struct{ body, code string }{
		"preamble":         {"hello\r\n" + whole, "multipart"},
		"other boundary":   {strings.Replace(whole, "--==b==", "--==c==", 1), "multipart"},
		"mixed":            {strings.Replace(whole, "\r\n", "\n", 1), "multipart"},
		"mixed, later":     {strings.Replace(whole, job1+"\r\n", job1+"\n", 1), "multipart"},
		"no line":          {strings.Repeat("x", 1000), "multipart"},
		"no type":          {strings.Replace(whole, "content-type: application/json; charset=UTF-8", "content-id: 1", 1), "multipart"},
		"two types":        {strings.Replace(whole, "content-type", "content-type: application/json\r\ncontent-type", 1), "multipart"},
		"wrong type":       {strings.Replace(whole, "application/json", "text/plain", 1), "multipart"},
		"encoded":          {strings.Replace(whole, "content-type", "content-transfer-encoding: base64\r\ncontent-type", 1), "multipart"},
		"method override":  {strings.Replace(whole, "content-type", "x-http-method-override: PUT\r\ncontent-type", 1), "multipart"},
		"header damaged":   {strings.Replace(whole, "content-type:", "content-type", 1), "multipart"},
		"folded header":    {strings.Replace(whole, "; charset", ";\r\n charset", 1), "multipart"},
		"long headers":     {strings.Replace(whole, "charset=UTF-8", strings.Repeat("a", 10_000), 1), "multipart"},
		"one part":         {"--==b==\r\ncontent-type: application/json\r\n\r\n" + job1 + "\r\n--==b==--\r\n", "multipart"},
		"boundary in text": {"--==b==\r\ncontent-type: application/json\r\n\r\n{\r\n--==b==x", "multipart"},
		"long job":         {"--==b==\r\ncontent-type: application/json\r\n\r\n" + strings.Repeat(" ", 2000), "body_large"},
		"long job, ended":  {"--==b==\r\ncontent-type: application/json\r\n\r\n" + strings.Repeat(" ", 1500) + "\r\n--==b==\r\n", "body_large"},
	} {
		p, err := NewPart(`multipart/related; boundary="==b=="`, 1000)
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Write([]byte(c.body + strings.Repeat("y", 100)))
		if r := refusalOf(t, err); r == nil || r.Code != c.code {
			t.Errorf("%s: got %v, want %s", name, err, c.code)
		}
	}
	for _, ct := range []string{"", "multipart/form-data; boundary=x", "multipart/related", "multipart/related; boundary=" + strings.Repeat("x", 71), "multipart/related; boundary=\"a\\\"b\"", "multipart/related; boundary=\"a \"", "multipart/mixed; boundary=a"} {
		if _, err := NewPart(ct, 10); err == nil {
			t.Errorf("content-type %q passed", ct)
		}
	}
}

func FuzzPart(f *testing.F) {
	f.Add([]byte(pythonUpload("\r\n")), uint8(3))
	f.Add([]byte(pythonUpload("\n")), uint8(200))
	f.Fuzz(func(t *testing.T, body []byte, size uint8) {
		run := func(n int) (p *Part, used int, err error) {
			p, _ = NewPart(`multipart/related; boundary="==b=="`, 200)
			for used < len(body) {
				end := min(used+n, len(body))
				done, err := p.Write(body[used:end])
				used = end
				if done || err != nil {
					return p, used, err
				}
			}
			return p, used, nil
		}
		a, used, errA := run(int(size) + 1)
		b, _, errB := run(1)
		if (errA == nil) != (errB == nil) {
			t.Fatalf("by %d: %v; by 1: %v", int(size)+1, errA, errB)
		}
		if errA != nil || a.JSON() == nil {
			return
		}
		if !bytes.Equal(a.JSON(), b.JSON()) {
			t.Fatalf("%q by %d, %q by 1", a.JSON(), int(size)+1, b.JSON())
		}
		// A job that the strict reader takes is what any reader finds first.
		if _, _, ref := readJSON(a.JSON(), anyShape); ref != nil {
			return
		}
		r := multipart.NewReader(bytes.NewReader(append(a.Replace(a.JSON()), body[used:]...)), "==b==")
		part, err := r.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(part); !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(a.JSON())) {
			t.Fatalf("the plain reader finds %q, not %q", got, a.JSON())
		}
	})
}
