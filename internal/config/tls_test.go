package config_test

import (
	"testing"

	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// Which files go together, and with which URLs. They are read by Run, not by New.
func TestTLSSettings(t *testing.T) {
	cluster := func(c *locator.Config) { c.PeerTLSCertFile, c.PeerTLSKeyFile, c.PeerTLSCAFile = "c", "k", "a" }
	for name, c := range map[string]struct {
		change func(*locator.Config)
		want   []string // what the error says; none: it can be
	}{
		"the cluster's":                {cluster, nil},
		"the cluster's and embedded":   {func(c *locator.Config) { cluster(c); c.NATSURL, c.NATSToken = "", "t" }, nil},
		"the cluster's without its CA": {func(c *locator.Config) { cluster(c); c.PeerTLSCAFile = "" }, []string{"DIALRING_PEER_TLS_CA_FILE", "all three"}},
		"the cluster's CA only":        {func(c *locator.Config) { c.PeerTLSCAFile = "a" }, []string{"DIALRING_PEER_TLS_CERT_FILE", "all three"}},
		"a CA of NATS":                 {func(c *locator.Config) { c.NATSURL, c.NATSTLSCAFile = "tls://n, tls://m", "a" }, nil},
		"a CA of NATS, one without TLS": {func(c *locator.Config) { c.NATSURL, c.NATSTLSCAFile = "tls://n,nats://m", "a" },
			[]string{"DIALRING_NATS_TLS_CA_FILE", "DIALRING_NATS_URL", "tls://"}},
		"half a certificate for NATS": {func(c *locator.Config) { c.NATSURL, c.NATSTLSKeyFile = "tls://n", "k" }, []string{"DIALRING_NATS_TLS_CERT_FILE"}},
		"a CA of the embedded NATS": {func(c *locator.Config) { c.NATSURL, c.NATSToken, c.NATSTLSCAFile = "", "t", "a" },
			[]string{"DIALRING_NATS_TLS_CA_FILE", "DIALRING_PEER_TLS_CERT_FILE"}},
		"half a certificate for clients": {func(c *locator.Config) { c.TLSKeyFile = "k" }, []string{"DIALRING_TLS_CERT_FILE", "DIALRING_TLS_KEY_FILE"}},
	} {
		cfg := aLocator()
		c.change(&cfg)
		l, err := locator.New(cfg)
		judge(t, "locator: "+name, l != nil, err, c.want)
	}
	clusters := func(c *wsnode.Config) {
		c.PeerURL, c.PeerTLSCertFile, c.PeerTLSKeyFile, c.PeerTLSCAFile = "https://ws-1.example.com:8092", "c", "k", "a"
	}
	for name, c := range map[string]struct {
		change func(*wsnode.Config)
		want   []string
	}{
		"the cluster's":                  {clusters, nil},
		"https without":                  {func(c *wsnode.Config) { c.PeerURL = "https://ws-1.example.com" }, nil}, // something in front of it
		"the cluster's and http":         {func(c *wsnode.Config) { clusters(c); c.PeerURL = "http://10.0.0.1:8092" }, []string{"DIALRING_PEER_URL", "https://"}},
		"the cluster's without its key":  {func(c *wsnode.Config) { clusters(c); c.PeerTLSKeyFile = "" }, []string{"DIALRING_PEER_TLS_KEY_FILE", "all three"}},
		"a CA of NATS, which has no TLS": {func(c *wsnode.Config) { c.NATSTLSCAFile = "a" }, []string{"DIALRING_NATS_TLS_CA_FILE", "tls://"}},
	} {
		cfg := aNode()
		c.change(&cfg)
		n, err := wsnode.New(cfg)
		judge(t, "wsnode: "+name, n != nil, err, c.want)
	}
}
