package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificate writes a certificate for 127.0.0.1 and its key, and returns a pool
// with it.
func certificate(t *testing.T, dir string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return pool
}

// TestServeTLS: the service speaks TLS, and takes a replaced certificate with
// no restart.
func TestServeTLS(t *testing.T) {
	dir := t.TempDir()
	first := certificate(t, dir, 1)
	c := &serveConfig{Listen: "127.0.0.1:0"}
	c.TLS = &serveTLS{Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	l, scheme, err := c.listen()
	if err != nil || scheme != "https" {
		t.Fatalf("%s, %v", scheme, err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.TLS.ServerName+"ok") })}
	go s.Serve(l)
	defer s.Close()
	get := func(pool *x509.CertPool) error {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
		res, err := client.Get("https://" + l.Addr().String())
		if err == nil {
			res.Body.Close()
		}
		return err
	}
	if err := get(first); err != nil {
		t.Error(err)
	}
	second := certificate(t, dir, 2)
	if err := get(second); err != nil {
		t.Error(err)
	}
	if err := get(first); err == nil {
		t.Error("the old certificate still serves")
	}
	c.TLS.Key = filepath.Join(dir, "none.pem")
	if _, _, err := c.listen(); err == nil {
		t.Error("it listens without a key")
	}
}
