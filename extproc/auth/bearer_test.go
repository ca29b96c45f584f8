package auth_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/recorder/record"
)

const jws = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJDQU5BUlkifQ.c2lnbmF0dXJl"

func TestBearer(t *testing.T) {
	h := func(pairs ...string) (hs []record.Header) {
		hs = append(hs, record.Header{Name: ":method", Value: "POST"}, record.Header{Name: "user-agent", Value: "bq/2.1"})
		for i := 0; i < len(pairs); i += 2 {
			hs = append(hs, record.Header{Name: pairs[i], Value: pairs[i+1]})
		}
		return hs
	}
	one := h("authorization", "Bearer "+jws)
	for _, tt := range []struct {
		name    string
		headers []record.Header
		query   string
		want    auth.Code // empty: jws
	}{
		{"plain", one, "alt=json&prettyPrint=false", ""},
		{"capitals", h("Authorization", "BEARER  "+jws), "", ""},
		{"balancer's cookie", h("authorization", "bearer "+jws, "cookie", "GCLB=abc; lang=en"), "", ""},
		{"page token", one, "pageToken=BFXYAAAAAASUQAAJ&maxResults=10", ""},
		{"none", h(), "", auth.TokenMissing},
		{"empty", h("authorization", ""), "", auth.TokenMissing},
		{"only the scheme", h("authorization", "Bearer"), "", auth.TokenMissing},
		{"only the scheme and a space", h("authorization", "Bearer "), "", auth.TokenMissing},
		{"basic", h("authorization", "Basic YTpi"), "", auth.SchemeRefused},
		{"DPoP", h("authorization", "DPoP "+jws), "", auth.SchemeRefused},
		{"bare token", h("authorization", jws), "", auth.SchemeRefused},
		{"two headers", h("authorization", "Bearer "+jws, "Authorization", "Bearer "+jws), "", auth.CredentialDuplicate},
		{"two headers, one empty", h("authorization", "Bearer "+jws, "authorization", ""), "", auth.CredentialDuplicate},
		{"underscore twin", h("authorization", "Bearer "+jws, "proxy_authorization", "x"), "", auth.CredentialInHeader},
		{"two in one", h("authorization", "Bearer "+jws+", Bearer "+jws), "", auth.TokenMalformed},
		{"two after another", h("authorization", "Bearer "+jws+" "+jws), "", auth.TokenMalformed},
		{"newline", h("authorization", "Bearer "+jws+"\r\nx"), "", auth.TokenMalformed},
		{"tab for a space", h("authorization", "Bearer\t"+jws), "", auth.SchemeRefused},
		{"100 KB", h("authorization", "Bearer "+strings.Repeat("a", 100<<10)), "", auth.TokenTooLarge},
		{"API key", h("authorization", "Bearer "+jws, "X-Goog-Api-Key", "k"), "", auth.CredentialInHeader},
		{"IAM token", h("authorization", "Bearer "+jws, "x-goog-iam-authorization-token", "k"), "", auth.CredentialInHeader},
		{"proxy", h("authorization", "Bearer "+jws, "proxy-authorization", "Basic YTpi"), "", auth.CredentialInHeader},
		{"cookie with a sign-in", h("authorization", "Bearer "+jws, "cookie", "a=b; SAPISID=x"), "", auth.CredentialInHeader},
		{"cookie with a secure sign-in", h("authorization", "Bearer "+jws, "cookie", "__Secure-3PSID=x"), "", auth.CredentialInHeader},
		{"cookie with a token", h("authorization", "Bearer "+jws, "cookie", "session="+jws), "", auth.CredentialInHeader},
		{"access_token", one, "access_token=x", auth.CredentialInQuery},
		{"access_token without header", h(), "alt=json&access_token=x", auth.CredentialInQuery},
		{"oauth_token", one, "a=b&oauth_token=x", auth.CredentialInQuery},
		{"bearer_token", one, "bearer_token=x", auth.CredentialInQuery},
		{"key", one, "key=AIzaSyXXXX", auth.CredentialInQuery},
		{"key empty", one, "key=", auth.CredentialInQuery},
		{"key without value", one, "key", auth.CredentialInQuery},
		{"encoded", one, "%61ccess_token=x", auth.CredentialInQuery},
		{"encoded whole", one, "%6B%65%79=x", auth.CredentialInQuery},
		{"encoded twice", one, "%2561ccess_token=x", auth.CredentialInQuery},
		{"capitals", one, "Access_Token=x", auth.CredentialInQuery},
		{"with dollar", one, "$key=x", auth.CredentialInQuery},
		{"with encoded dollar", one, "%24key=x", auth.CredentialInQuery},
		{"array", one, "access_token[]=x", auth.CredentialInQuery},
		{"space", one, "+access_token=x", auth.CredentialInQuery},
		{"NUL", one, "access_token%00=x", auth.CredentialInQuery},
		{"semicolon", one, "a=b;access_token=x", auth.CredentialInQuery},
		{"second question mark", one, "a?access_token=x", auth.CredentialInQuery},
		{"hidden in a name", one, "a%26access_token%3Dx%26b=c", auth.CredentialInQuery},
		{"hidden in a value", one, "a=%26access_token%3Dx", auth.CredentialInQuery},
		{"headers in the query", one, "$httpHeaders=Authorization:x", auth.CredentialInQuery},
		{"JWT under another name", one, "filter=" + jws, auth.CredentialInQuery},
		{"JWT as a name", one, jws, auth.CredentialInQuery},
		{"Google token under another name", one, "x=ya29.a0AfH6SMBxxxxxxxxxxxxxxx", auth.CredentialInQuery},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token, err := auth.Bearer(tt.headers, tt.query)
			if tt.want == "" {
				if err != nil || token != jws {
					t.Errorf("%q, %v", token, err)
				}
				return
			}
			e := wantCode(t, err, tt.want)
			if token != "" || strings.Contains(e.Message, "eyJ") {
				t.Errorf("%q, %v", token, e)
			}
		})
	}
}

func TestRedactQuery(t *testing.T) {
	for query, want := range map[string]string{
		"": "",
		"alt=json&pageToken=BFX%3D%3D&maxResults=1":         "alt=json&pageToken=BFX%3D%3D&maxResults=1",
		"alt=json&access_token=SECRET&x=1":                  "alt=json&access_token=REDACTED&x=1",
		"%61ccess_token=SECRET;key=SECRET":                  "%61ccess_token=REDACTED;key=REDACTED",
		"key=a&key=b":                                       "key=REDACTED&key=REDACTED",
		"access_token%3DSECRET":                             "REDACTED",
		"x%26access_token%3DSECRET%26y=1":                   "REDACTED=REDACTED",
		"x=1%26access_token%3DSECRET":                       "x=REDACTED",
		"q=" + jws + "&y=2":                                 "q=REDACTED&y=2",
		strings.ReplaceAll("q="+jws, ".", "%2E"):            "q=REDACTED",
		jws:                                                 "REDACTED",
		jws + "=1":                                          "REDACTED=REDACTED",
		"x=https%3A%2F%2Fb.test%2F%3Faccess_token%3DSECRET": "x=REDACTED",
		"key":           "key",
		"&&a=&=b&":      "&&a=&=b&",
		"%zz=%&a=%4":    "%zz=%&a=%4",
		"%zzkey=1":      "%zzkey=1",
		"monkey=1":      "monkey=1",
		"fields=key,id": "fields=key,id",
	} {
		got := auth.RedactQuery(query)
		if got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
		if again := auth.RedactQuery(got); again != got {
			t.Errorf("%q: again gives %q", got, again)
		}
	}
}

func TestCredentialHeaderAndValue(t *testing.T) {
	for name, want := range map[string]bool{
		"Authorization": true, "proxy-authorization": true, "Cookie": true, "set-cookie": true, "X-Goog-Api-Key": true, "x_goog_api_key": true,
		"x-goog-iam-authorization-token": true, "x-forwarded-access-token": true, "x-amz-security-token": true, "dpop": true, "X-Original-Authorization": true,
		"x-goog-iap-jwt-assertion": true, "x-auth-token": true,
		"user-agent": false, "content-type": false, "x-verbatim-tool-call": false, "traceparent": false, "x-goog-request-reason": false, "x-goog-user-project": false,
		"x-goog-api-client": false, ":path": false, "etag": false, "location": false,
	} {
		if auth.CredentialHeader(name) != want {
			t.Errorf("header %s: %t", name, !want)
		}
	}
	for value, want := range map[string]bool{
		jws: true, "x" + jws: true, "xy" + jws: true, "xyz" + jws: true, "token is " + jws + "!": true, "Bearer abcdefghijklmnop": true, "x, bearer   abcdefghijklmnop": true,
		"ya29.a0AfH6SMBabcdefghij": true, "AIzaSyA-abcdefghijklmnopqrstuvwxyz012345": true,
		"1//0gabcdefghijklmnopqrstuvwxyz0123456789": true, "https://host.test/v1//0/path/to/something": false,
		"eyJhbGciOiJSUzI1NiJ9": false, "bigquery.googleapis.com": false, "gl-python/3.12.1 grpc/1.60.0 gax/2.15.0": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": false, "project.dataset.table_with_a_long_name": false, "the bearer of news": false,
	} {
		if auth.CredentialValue(value) != want {
			t.Errorf("value %s: %t", value, !want)
		}
	}
	// Hostile values cost little, though each of their bytes may begin a token.
	began := time.Now()
	auth.CredentialValue(strings.Repeat("eyJ", 50_000) + ".x")
	auth.CredentialValue(strings.Repeat("ey", 50_000) + ".x")
	auth.CredentialValue(strings.Repeat("bearer ", 20_000))
	auth.CredentialValue(strings.Repeat("e.", 50_000))
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("took %s", d)
	}
}

func FuzzBearer(f *testing.F) {
	f.Add("authorization", "Bearer "+jws, "cookie", "a=b", "alt=json")
	f.Add("authorization", "Bearer x", "authorization", "Bearer y", "access_token=z")
	f.Add("Authorization", "bearer  x==", "x-goog-api-key", "", "%6bey=1;a")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2, query string) {
		headers := []record.Header{{Name: n1, Value: v1}, {Name: n2, Value: v2}}
		token, err := auth.Bearer(headers, query)
		if (token == "") == (err == nil) {
			t.Fatalf("%q and %v", token, err)
		}
		redacted := auth.RedactQuery(query)
		if auth.RedactQuery(redacted) != redacted {
			t.Fatalf("%q is redacted again to %q", redacted, auth.RedactQuery(redacted))
		}
		if !auth.InQuery(query) && redacted != query {
			t.Fatalf("%q was changed to %q", query, redacted)
		}
		if err != nil {
			return
		}
		if strings.ContainsAny(token, " ,\r\n\t") || !strings.Contains(v1+v2, token) {
			t.Fatalf("token %q", token)
		}
		if auth.InQuery(query) {
			t.Fatalf("accepted with %q", query)
		}
		// What Go's own parser takes for a credential must have been seen.
		for name := range parseQuery(query) {
			switch name {
			case "access_token", "oauth_token", "bearer_token", "key":
				t.Fatalf("%q passed with %s", query, name)
			}
		}
	})
}

func FuzzRedactQuery(f *testing.F) {
	f.Add("a=b", 0, "&c=d", uint64(0))
	f.Add("x", 1, ";", uint64(0xffff))
	f.Add("%", 2, "%26", uint64(0xaaaa))
	f.Fuzz(func(t *testing.T, before string, which int, after string, escape uint64) {
		const canary = "CANARY0123456789"
		name := []string{"access_token", "oauth_token", "key", "$key", "bearer_token"}[uint(which)%5]
		var b strings.Builder
		for i := range len(name) {
			if escape>>(i%64)&1 == 1 {
				b.WriteString("%" + strings.ToLower(string("0123456789abcdef"[name[i]>>4])) + string("0123456789ABCDEF"[name[i]&15]))
			} else {
				b.WriteByte(name[i])
			}
		}
		if strings.Contains(before+after, canary) {
			return
		}
		query := before + "&" + b.String() + "=" + canary + "&" + after
		if got := auth.RedactQuery(query); strings.Contains(got, canary) {
			t.Fatalf("%q becomes %q", query, got)
		}
		if !auth.InQuery(query) {
			t.Fatalf("%q has no credential", query)
		}
	})
}

// parseQuery takes what it can, as net/url does.
func parseQuery(q string) url.Values {
	v, _ := url.ParseQuery(q)
	return v
}
