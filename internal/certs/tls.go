package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
)

// http1: HTTP/2 is not offered. A WebSocket starts as HTTP/1.1, and so do streamed pushes and
// links between programs.
var http1 = []string{"http/1.1"}

// Listener has l, which is for anyone, speak TLS, from 1.2 on.
func (f *Files) Listener(l net.Listener) net.Listener {
	if f == nil {
		return l
	}
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: http1,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.cur.Load().tls, nil }})
}

// PeerListener has l, which is for programs of the cluster, speak TLS as Server says.
func (f *Files) PeerListener(l net.Listener) net.Listener {
	if f == nil {
		return l
	}
	c := f.Server()
	c.NextProtos = http1
	return tls.NewListener(l, c)
}

// Server is for a listener of the cluster: TLS 1.3 for whoever shows a certificate of a CA.
// Sessions are not resumed: each connection is judged by the CAs of now.
func (f *Files) Server() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.cur.Load().tls, nil }}
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := c.Clone()
		now.ClientCAs, now.GetConfigForClient = f.cur.Load().roots, nil
		return now, nil
	}
	return c
}

// Client is for one connection to a program of the cluster at name, a host name or an
// address, which its certificate must have. nil files: the roots of the system decide.
func (f *Files) Client(name string) *tls.Config {
	c := &tls.Config{ServerName: name, NextProtos: http1}
	if f == nil {
		return c
	}
	now := f.cur.Load()
	c.MinVersion, c.RootCAs = tls.VersionTLS13, now.roots
	// Whatever CAs the other side names: it is to say what it has against this one.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return now.tls, nil }
	return c
}

// Encrypted tells whether a program of the cluster may be called at u: with files by https only.
func (f *Files) Encrypted(u *url.URL) error {
	if f == nil || u.Scheme == "https" {
		return nil
	}
	return errors.New("its peer address is not https, and with DIALRING_PEER_TLS_CERT_FILE here nodes are called by TLS only: give that node the files, too, and an https DIALRING_PEER_URL")
}

// Both is for equals that call each other, as NATS servers do: one configuration for all
// connections, as a server and as a client. Who is called must have one of the hosts, names or
// addresses, in its certificate: NATS finds its equals also by addresses of which others
// tell, and crypto/tls does not say by which address was called.
func (f *Files) Both(hosts []string) *tls.Config {
	c := f.Server()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return f.cur.Load().tls, nil }
	// RootCAs could not change. VerifyConnection does the same by the CAs of now, and for a
	// server's side the configuration for each client, which has it not, does.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error {
		var chain [][]byte
		for _, between := range s.PeerCertificates[1:] {
			chain = append(chain, between.Raw)
		}
		err := errors.New("there are no hosts that it may be of")
		for _, host := range hosts {
			if err = verify(s.PeerCertificates[0], chain, f.cur.Load().roots, x509.ExtKeyUsageServerAuth, host); err == nil {
				return nil
			}
		}
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	perClient := c.GetConfigForClient
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		now, err := perClient(h)
		now.InsecureSkipVerify, now.VerifyConnection = false, nil
		return now, err
	}
	return c
}

// Certificate is what is shown now; nil if there is none.
func (f *Files) Certificate() *tls.Certificate { return f.cur.Load().tls }

// Roots are the CAs of now; nil if there are none.
func (f *Files) Roots() *x509.CertPool { return f.cur.Load().roots }
