package config

import (
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
