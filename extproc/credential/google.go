package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
)

// single is a source that has one token for all callers.
type single struct {
	cache *cache
	wire  *wire
	inner Source // closed with it; may be nil
}

func (s *single) Token(ctx context.Context, c Caller) (Token, error) { return s.cache.get(ctx, c) }

func (s *single) Check(ctx context.Context) error {
	return s.cache.check(ctx, Caller{}, s.cache.fetch)
}

func (s *single) Close() error {
	s.cache.close()
	s.wire.close()
	if s.inner != nil {
		return s.inner.Close()
	}
	return nil
}

// keyFile is a service account's key file
// (https://cloud.google.com/iam/docs/keys-create-delete).
type keyFile struct {
	Type         string `json:"type"`
	Email        string `json:"client_email"`
	PrivateKeyID string `json:"private_key_id"`
	PrivateKey   string `json:"private_key"`
	TokenURI     string `json:"token_uri"`
}

func readKeyFile(name string) (*keyFile, error) {
	b, err := readFile(name, maxAnswer)
	if err != nil {
		return nil, err
	}
	var k keyFile
	if json.Unmarshal(b, &k) != nil {
		return nil, fmt.Errorf("%s is not JSON: use the key file as it was downloaded", name)
	}
	switch {
	case k.Type != "service_account":
		return nil, fmt.Errorf("%s is no key of a service account (its type is another): use kind adc for other credential files", name)
	case !email.MatchString(k.Email):
		return nil, fmt.Errorf("%s has no client_email that is an email address: use the key file as it was downloaded", name)
	case k.PrivateKeyID == "":
		return nil, fmt.Errorf("%s has no private_key_id: use the key file as it was downloaded", name)
	}
	if _, err := parseSigner([]byte(k.PrivateKey)); err != nil {
		return nil, fmt.Errorf("private_key in %s: %w", name, err)
	}
	if k.TokenURI == "" {
		k.TokenURI = "https://oauth2.googleapis.com/token"
	}
	if why := CheckURL(k.TokenURI); why != "" {
		return nil, fmt.Errorf("token_uri in %s: %s", name, why)
	}
	return &k, nil
}

// readFile reads a regular file (or what a link leads to) of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return b, nil
}

func newServiceAccount(c Config, w *wire, log *slog.Logger) (Source, error) {
	k, err := readKeyFile(c.File)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", c.Kind, err)
	}
	name := c.Kind + ":" + k.Email
	fetch := func(ctx context.Context, _ Caller) (Token, error) {
		// Read again, so that a new key takes effect without a restart.
		k, err := readKeyFile(c.File)
		if err != nil {
			return Token{}, &Error{Name: name, Step: stepFile, Reason: err.Error()}
		}
		p, err := auth.New2LOTokenProvider(&auth.Options2LO{
			Email: k.Email, PrivateKey: []byte(k.PrivateKey), PrivateKeyID: k.PrivateKeyID,
			TokenURL: k.TokenURI, Scopes: c.Scopes, Client: w.client, Logger: silent(),
		})
		if err != nil {
			return Token{}, &Error{Name: name, Step: stepFile, Reason: "the key cannot be used"}
		}
		return libraryToken(ctx, p, c.Kind+":"+k.Email, stepOAuth)
	}
	return &single{wire: w, cache: newCache(cacheConfig{name: name, fetch: fetch, timeout: c.Timeout, logger: log})}, nil
}

// libraryToken takes a token from a provider of the auth library.
func libraryToken(ctx context.Context, p auth.TokenProvider, name, step string) (Token, error) {
	begun := time.Now()
	t, err := p.Token(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Token{}, cleaned(err, name, step)
	}
	if err := checkToken(t.Value); err != nil {
		return Token{}, &Error{Name: name, Step: step, Reason: err.Error()}
	}
	if t.Expiry.IsZero() {
		return Token{}, &Error{Name: name, Step: step, Reason: "it does not say when the token expires"}
	}
	// The library counts from the end of the answer, the endpoint from its beginning.
	return Token{Value: t.Value, Expires: t.Expiry.Round(0).Add(-time.Since(begun)), Name: name}, nil
}

func newADC(c Config, w *wire, log *slog.Logger) (Source, error) {
	name := c.Kind
	fetch := func(ctx context.Context, _ Caller) (Token, error) {
		// Detected for each fetch: the library would keep what it read, and its own
		// cache would give the old token out again.
		creds, err := credentials.DetectDefault(&credentials.DetectOptions{
			Scopes: c.Scopes, Client: w.client, Logger: silent(), DisableAsyncRefresh: true,
		})
		if err != nil {
			return Token{}, adcError(err)
		}
		return libraryToken(ctx, creds, name+":"+adcIdentity(creds.JSON()), stepADC)
	}
	return &single{wire: w, cache: newCache(cacheConfig{name: name, fetch: fetch, timeout: c.Timeout, logger: log})}, nil
}

func adcError(err error) error {
	var path *fs.PathError
	switch {
	case errors.As(err, &path):
		return cleaned(path, KindADC, stepADC)
	case strings.Contains(err.Error(), "could not find default credentials"):
		return &Error{Name: KindADC, Step: stepADC, Reason: "there are none on this machine",
			Hint: "set GOOGLE_APPLICATION_CREDENTIALS, run gcloud auth application-default login, or choose another kind"}
	}
	return &Error{Name: KindADC, Step: stepADC, Reason: "the file cannot be used",
		Hint: "check the file that GOOGLE_APPLICATION_CREDENTIALS names"}
}

// adcIdentity names whom a credentials file is for.
func adcIdentity(file []byte) string {
	if len(file) == 0 {
		return "metadata"
	}
	var f struct {
		Type  string `json:"type"`
		Email string `json:"client_email"`
		URL   string `json:"service_account_impersonation_url"`
	}
	if json.Unmarshal(file, &f) != nil {
		return "unknown"
	}
	if i := strings.LastIndex(f.URL, "/"); i >= 0 {
		if target := strings.TrimSuffix(f.URL[i+1:], ":generateAccessToken"); email.MatchString(target) {
			return target
		}
	}
	if email.MatchString(f.Email) {
		return f.Email
	}
	switch f.Type {
	case "authorized_user", "external_account", "external_account_authorized_user", "impersonated_service_account", "gdch_service_account":
		return f.Type
	}
	return "unknown"
}

// metadataHost is the metadata server's fixed address
// (https://cloud.google.com/compute/docs/metadata/overview).
const metadataHost = "169.254.169.254"

func newMetadata(c Config, d Deps) (Source, error) {
	// The metadata server is on this machine's link: never through a proxy.
	w := &wire{client: &http.Client{Transport: newTransport(nil), CheckRedirect: noRedirect}, own: true}
	if d.Client != nil {
		w = newWire(d.Client)
	}
	name := c.Kind + ":" + c.Account
	get := func(ctx context.Context, what string) ([]byte, error) {
		host := d.Getenv("GCE_METADATA_HOST")
		if host == "" {
			host = metadataHost
		}
		u := "http://" + host + "/computeMetadata/v1/instance/service-accounts/" + url.PathEscape(c.Account) + "/" + what
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		if err != nil {
			return nil, &Error{Name: name, Step: stepMetadata, Reason: "GCE_METADATA_HOST is no host", Hint: "set it to host or host:port"}
		}
		req.Header.Set("Metadata-Flavor", "Google")
		body, header, err := w.send(req, name, stepMetadata)
		if err != nil {
			return nil, err
		}
		if header.Get("Metadata-Flavor") != "Google" {
			return nil, &Error{Name: name, Step: stepMetadata, Reason: "another service answers at " + host,
				Hint: "this kind works on Google Cloud only; check GCE_METADATA_HOST"}
		}
		return body, nil
	}
	fetch := func(ctx context.Context, _ Caller) (Token, error) {
		identity := c.Account
		if identity == "default" {
			// Which account the machine has can change while it is stopped only, but
			// a wrong name on record would be worse than one more local call.
			b, err := get(ctx, "email")
			if err != nil {
				return Token{}, err
			}
			if identity = strings.TrimSpace(string(b)); !email.MatchString(identity) {
				return Token{}, &Error{Name: name, Step: stepMetadata, Reason: "it does not say which service account this machine has",
					Hint: "attach one to the machine, or set account"}
			}
		}
		begun := time.Now()
		body, err := get(ctx, "token?scopes="+url.QueryEscape(strings.Join(c.Scopes, ",")))
		if err != nil {
			return Token{}, err
		}
		return new(grant).read(body, begun, c.Kind+":"+identity, stepMetadata)
	}
	return &single{wire: w, cache: newCache(cacheConfig{name: name, fetch: fetch, timeout: c.Timeout, logger: d.Logger})}, nil
}

func newImpersonation(c Config, w *wire, d Deps) (Source, error) {
	inner := *c.Source
	if len(inner.Scopes) == 0 {
		inner.Scopes = []string{cloudPlatform}
	}
	source, err := New(inner, d)
	if err != nil {
		return nil, err
	}
	name := c.Kind + ":" + c.Target
	fetch := func(ctx context.Context, caller Caller) (Token, error) {
		base, err := source.Token(ctx, caller)
		if err != nil {
			return Token{}, err
		}
		return impersonate(ctx, w, c, base.Value, name)
	}
	return &single{wire: w, inner: source, cache: newCache(cacheConfig{name: name, fetch: fetch, timeout: c.Timeout, logger: d.Logger})}, nil
}

// impersonate calls generateAccessToken
// (https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken).
func impersonate(ctx context.Context, w *wire, c Config, bearer, name string) (Token, error) {
	const resource = "projects/-/serviceAccounts/"
	ask := struct {
		Delegates []string `json:"delegates,omitempty"`
		Scope     []string `json:"scope"`
		Lifetime  string   `json:"lifetime"`
	}{Scope: c.Scopes, Lifetime: fmt.Sprintf("%ds", int64(c.Lifetime.Seconds()))}
	for _, d := range c.Delegates {
		ask.Delegates = append(ask.Delegates, resource+d)
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return Token{}, err
	}
	endpoint := strings.TrimRight(c.IAMEndpoint, "/") + "/v1/" + resource + c.Target + ":generateAccessToken"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(string(body)))
	if err != nil {
		return Token{}, &Error{Name: name, Step: stepIAM, Reason: "the endpoint is no URL"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+bearer)
	answer, _, err := w.send(req, name, stepIAM)
	if err != nil {
		return Token{}, err
	}
	var got struct {
		AccessToken string    `json:"accessToken"`
		ExpireTime  time.Time `json:"expireTime"`
	}
	if json.Unmarshal(answer, &got) != nil {
		return Token{}, &Error{Name: name, Step: stepIAM, Reason: "the answer is not the JSON that was expected"}
	}
	if err := checkToken(got.AccessToken); err != nil {
		return Token{}, &Error{Name: name, Step: stepIAM, Reason: err.Error()}
	}
	return Token{Value: got.AccessToken, Expires: got.ExpireTime, Name: name}, nil
}
