// Package certtest makes CAs and certificates for tests.
package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA signs certificates.
type CA struct {
	PEM  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Leaf is what a certificate is to be like. The zero value of a field but Names means what
// the cluster wants.
type Leaf struct {
	Names  []string // host names and addresses
	From   time.Time
	To     time.Time
	Usages []x509.ExtKeyUsage
}

func block(kind string, b []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})
}

// New makes a CA that is good for a day.
func New(t testing.TB, name string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &CA{PEM: block("CERTIFICATE", der), cert: c, key: key}
}

// Issue makes a certificate and its key, in PEM.
func (c *CA) Issue(t testing.TB, l Leaf) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	leaf := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "dialring test"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if !l.From.IsZero() {
		leaf.NotBefore = l.From
	}
	if !l.To.IsZero() {
		leaf.NotAfter = l.To
	}
	if l.Usages != nil {
		leaf.ExtKeyUsage = l.Usages
	}
	for _, n := range l.Names {
		if ip := net.ParseIP(n); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, c.cert, &k.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", keyDER)
}

// Write puts a new certificate, and the CA, into dir as tls.crt, tls.key and ca.pem.
func (c *CA) Write(t testing.TB, dir string, l Leaf) {
	t.Helper()
	cert, key := c.Issue(t, l)
	Put(t, filepath.Join(dir, "ca.pem"), c.PEM)
	Put(t, filepath.Join(dir, "tls.crt"), cert)
	Put(t, filepath.Join(dir, "tls.key"), key)
}

// Put replaces a file at once: nobody reads a part of it.
func Put(t testing.TB, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", b, 0o644); err != nil { // #nosec G306 -- tests only
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}
