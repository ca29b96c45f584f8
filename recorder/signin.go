package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// signInTime is how long somebody has to sign in.
const signInTime = 5 * time.Minute

// signIn gets an ID token by the code flow with PKCE (RFC 7636), whose answer
// comes to loopback (RFC 8252, section 7.3).
type signIn struct{ issuer, client, scopes string }

func (s signIn) run(ctx context.Context, stderr io.Writer) (string, error) {
	if s.client == "" {
		return "", &usageError{"login: --issuer without --client-id", "give the id of a public client that the issuer has for recorder"}
	}
	ctx, cancel := context.WithTimeout(ctx, signInTime)
	defer cancel()
	provider, err := oidc.NewProvider(ctx, s.issuer)
	if err != nil {
		return "", fmt.Errorf("issuer %s: %w", s.issuer, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	flow := oauth2.Config{
		ClientID: s.client, Endpoint: provider.Endpoint(), Scopes: strings.Fields(s.scopes),
		RedirectURL: "http://" + l.Addr().String() + "/callback",
	}
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	fmt.Fprintf(stderr, "Open this in a browser of this machine, and sign in:\n\n  %s\n\n",
		flow.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)))
	code, err := callback(ctx, l, state)
	if err != nil {
		return "", err
	}
	token, err := flow.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		var said *oauth2.RetrieveError
		if errors.As(err, &said) { // its text holds the whole answer
			return "", fmt.Errorf("the issuer gave no token: %q", said.ErrorCode)
		}
		return "", fmt.Errorf("the issuer gave no token: %w", err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return "", errors.New("the issuer gave no ID token: is the scope openid among --scopes?")
	}
	id, err := provider.Verifier(&oidc.Config{ClientID: s.client}).Verify(ctx, raw)
	if err != nil {
		return "", errors.New("the issuer's ID token is not valid for this client") // the cause may quote it
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		return "", errors.New("the issuer's ID token is not the answer to this sign-in")
	}
	return raw, nil
}

// callback waits for the browser to come back with the code.
func callback(ctx context.Context, l net.Listener, state string) (string, error) {
	type answer struct {
		code string
		err  error
	}
	got := make(chan answer, 1)
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/callback" || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			http.Error(w, "this is not the answer that recorder waits for", http.StatusBadRequest)
			return
		}
		a := answer{code: q.Get("code")}
		text := "You are signed in. You can close this page.\n"
		if a.code == "" {
			a.err = fmt.Errorf("the issuer refused the sign-in: %q", q.Get("error"))
			text = "You are not signed in.\n"
		}
		_, _ = io.WriteString(w, text) // for a person who may have left
		select {
		case got <- a:
		default: // the page was loaded again
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	var a answer
	select {
	case a = <-got:
	case <-ctx.Done():
		a.err = errors.New("nobody signed in")
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if server.Shutdown(end) != nil {
		_ = server.Close() // a browser that holds its connection
	}
	<-served
	return a.code, a.err
}
