package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/record"
)

const loginHelp = `
Usage: recorder login --server URL --token-file FILE
       recorder login --server URL --issuer URL --client-id ID
       recorder login --server URL --forget

Keeps a token for a service (recorder serve), for later commands with the same --server.
It asks the service first who the token proves, and says so. With --token-file the token
is one that you have, - reads it from standard input. With --issuer you sign in with a
browser: the code flow of OpenID Connect with PKCE, the answer comes to a port of
loopback. The client must be a public one that allows http://127.0.0.1 with any port.

Tokens are kept in the folder of your configuration, verbatim/login.json, which nobody
else may read. --forget removes that of the server.

Examples:
  recorder login --server https://auditors.corp.example --issuer https://idp.corp.example --client-id recorder
  gcloud auth print-identity-token | recorder login --server https://auditors.corp.example --token-file -
  recorder login --server https://auditors.corp.example --forget
`

func loginCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := newFlags("login", loginHelp)
	var far remote
	var in signIn
	f.StringVar(&far.server, "server", "", "the `URL` of the service; else $VERBATIM_SERVER")
	f.StringVar(&far.tokenFile, "token-file", "", "the `FILE` with the token, - for standard input; else $VERBATIM_TOKEN")
	f.StringVar(&in.issuer, "issuer", "", "sign in at the OpenID Connect issuer at this `URL`")
	f.StringVar(&in.client, "client-id", "", "with --issuer: the `ID` of the client")
	f.StringVar(&in.scopes, "scopes", "openid email", "with --issuer: the `SCOPES` to ask for, with spaces between; some issuers want one for groups")
	forget := f.Bool("forget", false, "remove the token of the server")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if far.server == "" {
		far.server = os.Getenv("VERBATIM_SERVER")
	}
	if err := access.CheckServer(far.server); err != nil {
		return &usageError{fmt.Sprintf("login: --server: %v", err), f.see()}
	}
	kept, path, err := logins()
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	if *forget {
		delete(kept, serverKey(far.server))
		if err := keepLogins(path, kept); err != nil {
			return fmt.Errorf("login: %w", err)
		}
		_, err := fmt.Fprintf(stdout, "no token is kept for %s\n", far.server)
		return err
	}
	var token string
	switch {
	case in.issuer != "" && far.tokenFile != "":
		return &usageError{"login: --issuer and --token-file exclude each other", f.see()}
	case in.issuer != "":
		token, err = in.run(ctx, stderr)
	case far.tokenFile == "" && os.Getenv("VERBATIM_TOKEN") == "":
		return &usageError{"login: with what?", "give --token-file FILE, or --issuer URL --client-id ID"}
	default:
		token, err = f.token(&far)
	}
	if err != nil {
		return f.failed(err)
	}
	client, err := access.NewClient(access.ClientConfig{Server: far.server, Token: token, UserAgent: "recorder/" + record.Build})
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	who, err := client.Whoami(ctx)
	if err != nil {
		return f.failed(err)
	}
	kept[serverKey(far.server)] = token
	if err := keepLogins(path, kept); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	name := who.Subject
	if who.Email != "" {
		name = who.Email
	}
	_, err = fmt.Fprintf(stdout, "logged in to %s as %s of %s, role %s, until %s\n", oneLine(who.Service), oneLine(name), oneLine(who.Issuer), oneLine(string(who.Role)), moment(who.Expires))
	return err
}

// keepLogins replaces the file of tokens, mode 0600.
func keepLogins(path string, kept map[string]string) error {
	b, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return replace(path, append(b, '\n'), 0o600)
}
