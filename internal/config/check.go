package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Error is a setting, or a pair of them, that cannot be: it says what to do.
type Error struct{ msg string }

func (e *Error) Error() string { return e.msg }

// Errorf makes an Error.
func Errorf(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

func isSettings(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// Dev reads the setting DEV: whether it is development mode, and whether that
// may listen beyond loopback.
func Dev(s string) (dev, insecure bool, err error) {
	switch s {
	case "", "false":
		return false, false, nil
	case "true":
		return true, false, nil
	case "insecure":
		return true, true, nil
	}
	return false, false, Errorf("DIALRING_DEV is %q; it is one of false, true, insecure", s)
}

// Listen completes a listen address: an empty one becomes def, on loopback in
// development mode, which refuses anything beyond it unless insecure is set.
func Listen(name string, addr *string, def, dev string) error {
	isDev, insecure, err := Dev(dev)
	if err != nil {
		return err
	}
	if *addr == "" {
		*addr = def
		if isDev && strings.HasPrefix(def, ":") {
			*addr = "127.0.0.1" + def
		}
	}
	host, _, err := net.SplitHostPort(*addr)
	if err != nil {
		return Errorf("DIALRING_%s is %q; it must be host:port or :port", name, *addr)
	}
	if isDev && !insecure && !IsLoopback(host) {
		return Errorf("DIALRING_%s is %q, which others can reach, and development mode asks nobody for a key: listen on 127.0.0.1, or leave development mode, or set DIALRING_DEV=insecure if you mean it", name, *addr)
	}
	return nil
}

// IsLoopback tells whether a listen address's host is loopback.
func IsLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Cluster checks the name of a cluster: it becomes part of NATS subjects and
// bucket names.
func Cluster(s string) error {
	if s == "" || len(s) > 63 {
		return Errorf("DIALRING_CLUSTER must have 1 to 63 characters")
	}
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return Errorf("DIALRING_CLUSTER is %q; it consists of a-z 0-9 -", s)
		}
	}
	return nil
}

// minAdminKey is long enough that nobody finds a random one by trying.
const minAdminKey = 16

// AdminKey checks the key of admin listeners, if there is one.
func AdminKey(key Secret) error {
	if key != "" && len(key) < minAdminKey {
		return Errorf("DIALRING_ADMIN_KEY has %d bytes; it must have at least %d, such as from: openssl rand -base64 24", len(key), minAdminKey)
	}
	return nil
}

// NATSURL checks a list of NATS servers.
func NATSURL(list string) error {
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		if err == nil && !strings.Contains(s, "://") {
			u, err = url.Parse("nats://" + s)
		}
		if err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss" {
			return Errorf("DIALRING_NATS_URL cannot be used: it must be like nats://host:4222 or tls://host:4222, several separated by commas")
		}
	}
	return nil
}

// IsHTTPURL tells whether another program can be called by HTTP under s, which has no
// password in it.
func IsHTTPURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && u.Fragment == ""
}

// OTLPEndpoint checks the URL of a trace collector, if there is one.
func OTLPEndpoint(s string) error {
	if s != "" && !IsHTTPURL(s) {
		return Errorf("DIALRING_OTLP_ENDPOINT must be an http or https URL such as http://127.0.0.1:4318, without a password in it")
	}
	return nil
}

// TLSFiles are the settings of a certificate: files, and what it is for.
type TLSFiles struct {
	Prefix        string // of the settings' names: "", PEER_ or NATS_
	Cert, Key, CA string
	Mutual        bool // the CA is that of the certificate, too
}

// None tells whether no file is set.
func (f TLSFiles) None() bool { return f.Cert == "" && f.Key == "" && f.CA == "" }

// Names are the settings that are set.
func (f TLSFiles) Names() string {
	var out []string
	for _, s := range []struct{ name, file string }{{"CERT", f.Cert}, {"KEY", f.Key}, {"CA", f.CA}} {
		if s.file != "" {
			out = append(out, "DIALRING_"+f.Prefix+"TLS_"+s.name+"_FILE")
		}
	}
	return strings.Join(out, ", ")
}

// Or has the files of others where its own are not set.
func (f TLSFiles) Or(others TLSFiles) TLSFiles {
	f.CA = cmp.Or(f.CA, others.CA)
	if f.Cert == "" {
		f.Cert, f.Key = others.Cert, others.Key
	}
	return f
}

// Check checks that those are set that go together.
func (f TLSFiles) Check() error {
	switch {
	case f.Mutual && !f.None() && (f.Cert == "" || f.Key == "" || f.CA == ""):
		return Errorf("DIALRING_%[1]sTLS_CERT_FILE, DIALRING_%[1]sTLS_KEY_FILE and DIALRING_%[1]sTLS_CA_FILE go together: set all three, or none", f.Prefix)
	case (f.Cert == "") != (f.Key == ""):
		return Errorf("DIALRING_%[1]sTLS_CERT_FILE and DIALRING_%[1]sTLS_KEY_FILE go together: set both, or neither", f.Prefix)
	}
	return nil
}

// NATSTLS checks the files for connections to NATS against the URLs to which they are for.
func NATSTLS(f TLSFiles, list string) error {
	if err := f.Check(); err != nil || f.None() {
		return err
	}
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); !strings.HasPrefix(s, "tls://") && !strings.HasPrefix(s, "wss://") {
			return Errorf("%s is set, and DIALRING_NATS_URL has a server without TLS: write each as tls://host:4222, or unset the files", f.Names())
		}
	}
	return nil
}

// Least values of settings that both programs have.
const (
	LeastReservedFiles = 20
	LeastNATSPending   = 4 << 20 // two of the largest messages of the embedded NATS
)

// Range checks a number.
func Range[N int | int64](name string, v, from, to N) error {
	if v < from || v > to {
		return Errorf("DIALRING_%s is %d; it must be within %d and %d", name, v, from, to)
	}
	return nil
}

// OneOf checks a choice.
func OneOf(name, v string, choices ...string) error {
	for _, c := range choices {
		if v == c {
			return nil
		}
	}
	return Errorf("DIALRING_%s is %q; it is one of %s", name, v, strings.Join(choices, ", "))
}

// Origins checks a list of browser origins, each scheme://host or
// scheme://host:port, exactly as a browser sends it, and returns it trimmed.
func Origins(list []string) ([]string, error) {
	var out []string
	for _, o := range list {
		o = strings.TrimSpace(o)
		out = append(out, o)
		u, err := url.Parse(o)
		if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.Scheme+"://"+u.Host != o || strings.ToLower(o) != o || strings.Contains(o, "*") {
			return nil, Errorf("DIALRING_ALLOWED_ORIGINS has %q; an origin is written as browsers send it, such as https://app.example.com or http://localhost:3000 (no path, no wildcard)", o)
		}
	}
	return out, nil
}

// Networks checks a list of networks or addresses. One with bits beyond its mask is a
// mistake, such as 10.0.0.7/8 for 10.0.0.7, and one of everything would believe everybody.
func Networks(name string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		s = strings.TrimSpace(s)
		p, err := netip.ParsePrefix(s)
		if a, bad := netip.ParseAddr(s); bad == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		switch {
		case err != nil || p.Addr().Zone() != "" || p.Addr().Is4In6():
			return nil, Errorf("DIALRING_%s has %q; it lists networks such as 10.0.0.0/8 or fd00::/8, or single addresses, separated by commas", name, s)
		case p != p.Masked():
			return nil, Errorf("DIALRING_%s has %q, which is an address and no network; did you mean %s or %s", name, s, p.Addr(), p.Masked())
		case p.Bits() == 0:
			return nil, Errorf("DIALRING_%s has %q, which is everybody: then anyone could claim any address; name the networks of your proxies", name, s)
		}
		out = append(out, p)
	}
	return out, nil
}
