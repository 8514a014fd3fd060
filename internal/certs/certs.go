// Package certs reads certificates from files, and again when they change: those that
// listeners for clients show, and the one by which the programs of a cluster know each other.
package certs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/reread"
)

// Files are a certificate with its chain and its key, and CAs by which others are judged,
// in PEM files. A renewal needs no restart. nil: there are none. All methods may be called
// concurrently.
type Files struct {
	set config.TLSFiles
	log *slog.Logger
	cur atomic.Pointer[read]
}

// read is what the files had when they were read last.
type read struct {
	cert, key, ca []byte
	tls           *tls.Certificate // nil: there is no certificate
	roots         *x509.CertPool   // nil: there is no CA
	expires       time.Time
}

// Load reads the files that the settings name; without names it is nil. The error is one of
// the settings.
func Load(set config.TLSFiles, log *slog.Logger) (*Files, error) {
	if set.None() {
		return nil, nil
	}
	f := &Files{set: set, log: log}
	if _, err := f.load(); err != nil {
		return nil, config.Errorf("%s: %v", set.Names(), err)
	}
	return f, nil
}

// load reads the files, and tells whether they have changed.
func (f *Files) load() (bool, error) {
	var n read
	var err error
	for _, file := range []struct {
		name string
		into *[]byte
	}{{f.set.Cert, &n.cert}, {f.set.Key, &n.key}, {f.set.CA, &n.ca}} {
		if file.name == "" {
			continue
		}
		if *file.into, err = os.ReadFile(file.name); err != nil {
			return false, err
		}
	}
	was := f.cur.Load()
	if was != nil && bytes.Equal(was.cert, n.cert) && bytes.Equal(was.key, n.key) && bytes.Equal(was.ca, n.ca) {
		return false, nil
	}
	if f.set.CA != "" {
		if n.roots, err = pool(n.ca); err != nil {
			return false, fmt.Errorf("%s: %w", f.set.CA, err)
		}
	}
	if f.set.Cert != "" {
		c, err := tls.X509KeyPair(n.cert, n.key)
		if err != nil {
			return false, err
		}
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return false, err
		}
		n.tls, n.expires = &c, c.Leaf.NotAfter
	}
	if f.set.Mutual {
		// All in the cluster have the same CAs: what is not good here is good nowhere.
		for use, usage := range map[string]x509.ExtKeyUsage{"server": x509.ExtKeyUsageServerAuth, "client": x509.ExtKeyUsageClientAuth} {
			if err := verify(n.tls.Leaf, n.tls.Certificate[1:], n.roots, usage, ""); err != nil {
				return false, fmt.Errorf("the certificate is not good as that of a %s by the CA of %s (it has to be for both servers and clients): %w", use, f.set.CA, err)
			}
		}
	}
	f.cur.Store(&n)
	return true, nil
}

// pool reads a file of CAs. One that is cut off in the middle, since it is being written, is
// an error rather than a shorter list.
func pool(b []byte) (*x509.CertPool, error) {
	p, n := x509.NewCertPool(), 0
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		b = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it has a %s; it must have certificates only", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		p.AddCert(c)
		n++
	}
	if n == 0 || bytes.Contains(b, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("it has no certificate in PEM, or is cut off")
	}
	return p, nil
}

// verify checks a certificate against CAs; an empty name is not looked at.
func verify(leaf *x509.Certificate, chain [][]byte, roots *x509.CertPool, usage x509.ExtKeyUsage, name string) error {
	between := x509.NewCertPool()
	for _, der := range chain {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: name})
	return err
}

// Run looks for new files until ctx ends. Files that do not fit together, such as in
// the middle of a renewal, change nothing.
func (f *Files) Run(ctx context.Context) {
	if f == nil {
		return
	}
	reread.Watch(ctx, func() error {
		changed, err := f.load()
		if changed {
			f.log.Info("a new certificate", "event", "certificate", "settings", f.set.Names(), "expires", f.Expires())
			f.audit(nil)
		}
		return err
	}, func(err error, nth int) {
		if reread.Say(nth) {
			f.log.Error("the certificate's files cannot be used; going on with the last one", "event", "certificate_unread", "settings", f.set.Names(), "expires", f.Expires(), "error", err)
			f.audit(err)
		}
	})
}

func (f *Files) audit(err error) {
	reread.Audit(f.log, "certificate", cmp.Or(f.set.Cert, f.set.CA), err, "settings", f.set.Names())
}

// Expires is when the certificate does; the zero time without one.
func (f *Files) Expires() time.Time {
	if f == nil {
		return time.Time{}
	}
	return f.cur.Load().expires
}
