package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dialring/dialring/internal/certs/certtest"
	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/reread"
)

func filesIn(dir string) config.TLSFiles {
	return config.TLSFiles{Prefix: "PEER_", Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.pem"), Mutual: true}
}

var quiet = slog.New(slog.DiscardHandler)

// What files must be like: the error names the settings, and says what is wrong.
func TestLoad(t *testing.T) {
	ca, other := certtest.New(t, "ca"), certtest.New(t, "other")
	here := certtest.Leaf{Names: []string{"localhost"}}
	for name, c := range map[string]struct {
		change func(dir string)
		want   string // "": it can be
	}{
		"good":      {func(string) {}, ""},
		"two CAs":   {func(dir string) { certtest.Put(t, filepath.Join(dir, "ca.pem"), slices.Concat(other.PEM, ca.PEM)) }, ""},
		"a missing": {func(dir string) { os.Remove(filepath.Join(dir, "ca.pem")) }, "no such file"},
		"another CA": {func(dir string) { certtest.Put(t, filepath.Join(dir, "ca.pem"), other.PEM) },
			"ca.pem"},
		"no CA": {func(dir string) { certtest.Put(t, filepath.Join(dir, "ca.pem"), []byte("hello")) }, "no certificate in PEM"},
		"a cut-off CA": {func(dir string) {
			certtest.Put(t, filepath.Join(dir, "ca.pem"), append(slices.Clone(ca.PEM), other.PEM[:100]...))
		}, "cut off"},
		"another's key": {func(dir string) { _, key := ca.Issue(t, here); certtest.Put(t, filepath.Join(dir, "tls.key"), key) }, "does not match"},
		"expired":       {func(dir string) { l := here; l.To = time.Now().Add(-time.Minute); ca.Write(t, dir, l) }, "expired"},
		"for servers only": {func(dir string) {
			l := here
			l.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			ca.Write(t, dir, l)
		}, "that of a client"},
		"for clients only": {func(dir string) {
			l := here
			l.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			ca.Write(t, dir, l)
		}, "that of a server"},
		"a key as CA": {func(dir string) { _, key := ca.Issue(t, here); certtest.Put(t, filepath.Join(dir, "ca.pem"), key) }, "PRIVATE KEY"},
	} {
		dir := t.TempDir()
		ca.Write(t, dir, here)
		c.change(dir)
		_, err := Load(filesIn(dir), quiet)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "DIALRING_PEER_TLS_CERT_FILE")):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if f, err := Load(config.TLSFiles{}, quiet); f != nil || err != nil {
		t.Errorf("no files: %v, %v", f, err)
	}
}

// shake has a client and a server shake hands, and returns why the side failed that had
// something against the other.
func shake(t *testing.T, client, server *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		s := tls.Server(c, server)
		if err = s.Handshake(); err == nil {
			_, err = s.Write([]byte("x"))
		}
		served <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	s := tls.Client(c, client)
	if err = s.Handshake(); err == nil {
		_, err = s.Read(make([]byte, 1)) // with TLS 1.3 a client hears last that it is refused
	}
	if e := <-served; e != nil && !strings.Contains(e.Error(), "remote error") {
		return e
	}
	return err
}

// Who may be whom; and again after the CA has changed, by the configurations that there were.
func TestHandshakes(t *testing.T) {
	ca, next := certtest.New(t, "ca"), certtest.New(t, "next")
	made := func(c *certtest.CA, names ...string) (*Files, string) {
		dir := t.TempDir()
		c.Write(t, dir, certtest.Leaf{Names: names})
		f, err := Load(filesIn(dir), quiet)
		if err != nil {
			t.Fatal(err)
		}
		return f, dir
	}
	a, dirA := made(ca, "a", "10.0.0.1")
	b, dirB := made(ca, "b")
	stranger, _ := made(next, "a", "b")
	server, route := a.Server(), a.Both(nil)
	old := b.Client("a")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	bare := b.Client("a")
	bare.GetClientCertificate = nil
	unasked := stranger.Client("a")
	unasked.RootCAs = a.Roots()
	for name, c := range map[string]struct {
		client, server *tls.Config
		want           string
	}{
		"b calls a":                    {b.Client("a"), server, ""},
		"by its address":               {b.Client("10.0.0.1"), server, ""},
		"by another name":              {b.Client("c"), server, "not c"},
		"by no name of it":             {b.Client("10.0.0.2"), server, "10.0.0.2"},
		"TLS 1.2":                      {old, server, "unsupported versions"},
		"no certificate":               {bare, server, "didn't provide a certificate"},
		"another CA's":                 {unasked, server, "unknown authority"},
		"a calls who is not":           {a.Client("a"), stranger.Server(), "unknown authority"},
		"a route":                      {b.Both([]string{"c", "a"}), route, ""},
		"a route to an address":        {b.Both([]string{"10.0.0.1"}), route, ""},
		"a route to another name":      {b.Both([]string{"c"}), route, "not c"},
		"a route to another address":   {b.Both([]string{"10.0.0.2"}), route, "not 10.0.0.2"},
		"a route to nobody":            {b.Both(nil), route, "no hosts"},
		"a route to a stranger":        {b.Both([]string{"a"}), stranger.Both(nil), "unknown authority"},
		"a stranger's route, unasking": {unasked, route, "unknown authority"},
		"a client's to a route's port": {bare, route, "didn't provide a certificate"},
	} {
		err := shake(t, c.client, c.server)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}

	bRoute := b.Both([]string{"a"})
	reload := func(f *Files, dir string, ca []byte, leaf *certtest.CA, names ...string) {
		t.Helper()
		certtest.Put(t, filepath.Join(dir, "ca.pem"), ca)
		if leaf != nil {
			cert, key := leaf.Issue(t, certtest.Leaf{Names: names})
			certtest.Put(t, filepath.Join(dir, "tls.crt"), cert)
			certtest.Put(t, filepath.Join(dir, "tls.key"), key)
		}
		if changed, err := f.load(); !changed || err != nil {
			t.Errorf("new files: %v, %v", changed, err)
		}
		for what, err := range map[string]error{"b calls a": shake(t, b.Client("a"), server), "a calls b": shake(t, a.Client("b"), b.Server()), "a route": shake(t, bRoute, route)} {
			if err != nil {
				t.Errorf("%s in the middle of a change: %v", what, err)
			}
		}
	}
	both := slices.Concat(ca.PEM, next.PEM)
	reload(a, dirA, both, nil)
	reload(b, dirB, both, nil)
	reload(a, dirA, both, next, "a")
	reload(b, dirB, both, next, "b")
	late, _ := made(ca, "b")
	reload(a, dirA, next.PEM, nil)
	reload(b, dirB, next.PEM, nil)
	lateCall := late.Client("a")
	lateCall.RootCAs = a.Roots()
	if err := shake(t, lateCall, server); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a certificate of the CA that is gone: %v", err)
	}
	if err := shake(t, late.Both([]string{"a"}), route); err == nil {
		t.Error("a route with a certificate of the CA that is gone")
	}
}

// Files that do not fit change nothing.
func TestReloadKeeps(t *testing.T) {
	ca := certtest.New(t, "ca")
	dir := t.TempDir()
	ca.Write(t, dir, certtest.Leaf{Names: []string{"a"}})
	f, err := Load(filesIn(dir), quiet)
	if err != nil {
		t.Fatal(err)
	}
	was := f.Certificate()
	_, key := ca.Issue(t, certtest.Leaf{})
	certtest.Put(t, filepath.Join(dir, "tls.key"), key)
	if changed, err := f.load(); changed || err == nil {
		t.Errorf("%v, %v", changed, err)
	}
	if !bytes.Equal(f.Certificate().Certificate[0], was.Certificate[0]) || f.Expires() != was.Leaf.NotAfter {
		t.Error("it shows another certificate")
	}
}

// The audit has each change of the files, and those that cannot be used, not what was there at
// start.
func TestReloadAudit(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ca := certtest.New(t, "ca")
		ca.Write(t, dir, certtest.Leaf{Names: []string{"a"}})
		var log bytes.Buffer
		f, err := Load(filesIn(dir), slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.Run(ctx) }()
		has := func(what, result string, want int) {
			t.Helper()
			for range 3 {
				time.Sleep(reread.Look + time.Millisecond)
				synctest.Wait()
			}
			line := fmt.Sprintf("event=audit act=certificate target=%s who=file remote=\"\" result=%s", filepath.Join(dir, "tls.crt"), result)
			n := strings.Count(log.String(), line)
			if n != want {
				t.Errorf("%s: %d lines of the audit with %s, want %d: %s", what, n, result, want, &log)
			}
		}
		has("at start", "ok\n", 0)
		ca.Write(t, dir, certtest.Leaf{Names: []string{"a"}})
		has("a renewal", "ok\n", 1)
		certtest.Put(t, filepath.Join(dir, "tls.key"), []byte("no key"))
		has("no key", "refused error=\"tls: failed to find any PEM data", 1)
		has("no key", "ok\n", 1)
		cancel()
		<-done
	})
}
