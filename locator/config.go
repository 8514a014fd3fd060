package locator

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/wire"
)

// Secret is a setting that never shows in a log or an error.
type Secret = config.Secret

// Config is a locator's settings. The zero value of a field means its default;
// the program cmd/locator reads each from the environment, by the name in its
// tag behind DIALRING_.
type Config struct {
	NATSURL    string        `env:"NATS_URL" desc:"NATS servers, separated by commas; empty: the locator runs one itself"`
	NATSToken  config.Secret `env:"NATS_TOKEN" desc:"token for NATS; the embedded one asks it of others (required there unless in development mode)"`
	NATSCreds  string        `env:"NATS_CREDS" desc:"credentials file for NATS, instead of a token"`
	NATSListen string        `env:"NATS_LISTEN" default:"127.0.0.1:4222" desc:"where the embedded NATS listens"`
	DataDir    string        `env:"DATA_DIR" default:"./data" desc:"store of the embedded NATS"`
	DataSync   string        `env:"DATA_SYNC" default:"always" desc:"store of the embedded NATS: always survives a power cut, interval only a killed process"`
	Cluster    string        `env:"CLUSTER" default:"dialring" desc:"name of the cluster; two of them on one NATS never mix"`

	Listen      string `env:"LISTEN" default:":8080" desc:"address for clients and services"`
	AdminListen string `env:"ADMIN_LISTEN" default:"127.0.0.1:8081" desc:"address for metrics, health and, on loopback, profiles"`

	UserJWTSecret        config.Secret `env:"USER_JWT_SECRET" desc:"user tokens: shared secret (HS256), at least 32 bytes"`
	UserJWKSURL          string        `env:"USER_JWKS_URL" desc:"user tokens: URL of a JWK set"`
	UserJWTPublicKeyFile string        `env:"USER_JWT_PUBLIC_KEY_FILE" desc:"user tokens: PEM file with a public key (RSA, ECDSA or Ed25519)"`
	APIKeys              []string      `env:"API_KEYS" desc:"keys of services, separated by commas; required unless in development mode, where it is dev"`
	AllowedOrigins       []string      `env:"ALLOWED_ORIGINS" desc:"origins of browser pages that may locate, separated by commas"`

	SessionQueueBytes int           `env:"SESSION_QUEUE_BYTES" default:"1048576" desc:"bytes that may wait for a slow session (nodes heed it)"`
	MaxMessageBytes   int           `env:"MAX_MESSAGE_BYTES" default:"65536" desc:"largest pushed body; the same on nodes"`
	InboxMaxMessages  int           `env:"INBOX_MAX_MESSAGES" default:"1000" desc:"stored messages kept for each user; the nodes' setting counts"`
	InboxMaxAge       time.Duration `env:"INBOX_MAX_AGE" default:"72h" desc:"how long stored messages are kept; the nodes' setting counts"`
	RatePerAddress    int           `env:"RATE_PER_ADDRESS" default:"50" desc:"locates a second and address, bursts of four times that; off in development mode; -1: no limit"`

	Dev       string `env:"DEV" default:"false" desc:"true: development mode, on loopback only; insecure: also beyond it"`
	LogLevel  string `env:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`
	LogFormat string `env:"LOG_FORMAT" default:"text" desc:"text or json"`

	// Log takes the locator's log; default slog.Default.
	Log *slog.Logger

	dev bool
}

// complete puts the defaults in and checks everything that can be checked
// without I/O but for reading the key file. Its errors name the setting and say
// what to do.
func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	var err error
	if c.dev, _, err = config.Dev(c.Dev); err != nil {
		return err
	}
	if c.NATSURL != "" {
		for name, v := range map[string]string{"NATS_LISTEN": c.NATSListen, "DATA_DIR": c.DataDir, "DATA_SYNC": c.DataSync} {
			if v != "" {
				return config.Errorf("DIALRING_NATS_URL names a NATS to use and DIALRING_%s is for an embedded one: unset one of the two", name)
			}
		}
	}
	for _, l := range []struct {
		name string
		addr *string
		def  string
	}{{"LISTEN", &c.Listen, ":8080"}, {"ADMIN_LISTEN", &c.AdminListen, "127.0.0.1:8081"}, {"NATS_LISTEN", &c.NATSListen, "127.0.0.1:4222"}} {
		if err := config.Listen(l.name, l.addr, l.def, c.Dev); err != nil {
			return err
		}
	}
	if err := config.Defaults(c); err != nil {
		return err
	}
	if err := config.Cluster(c.Cluster); err != nil {
		return err
	}
	if c.NATSURL != "" {
		if err := config.NATSURL(c.NATSURL); err != nil {
			return err
		}
	}
	if c.NATSToken != "" && c.NATSCreds != "" {
		return config.Errorf("DIALRING_NATS_TOKEN and DIALRING_NATS_CREDS are both set; NATS takes one of them, so unset the other")
	}
	if c.embedsNATS() && c.NATSCreds != "" {
		return config.Errorf("DIALRING_NATS_CREDS is for a NATS server of its own: set DIALRING_NATS_URL too, or DIALRING_NATS_TOKEN instead")
	}
	if c.embedsNATS() && c.NATSToken == "" && !c.dev {
		return config.Errorf("DIALRING_NATS_TOKEN is required: the embedded NATS lets in only nodes that know it (or set DIALRING_NATS_URL to a NATS of your own, or DIALRING_DEV=true to try things on this machine)")
	}
	for name, v := range map[string]struct{ v, from, to int }{
		"MAX_MESSAGE_BYTES":   {c.MaxMessageBytes, 1, 1 << 20},
		"SESSION_QUEUE_BYTES": {c.SessionQueueBytes, 1 << 10, 1 << 30},
		"INBOX_MAX_MESSAGES":  {c.InboxMaxMessages, 1, 1_000_000},
	} {
		if err := config.Range(name, v.v, v.from, v.to); err != nil {
			return err
		}
	}
	if c.InboxMaxAge < time.Second {
		return config.Errorf("DIALRING_INBOX_MAX_AGE is %s; it must be at least 1s", c.InboxMaxAge)
	}
	if err := config.OneOf("DATA_SYNC", c.DataSync, "always", "interval"); err != nil {
		return err
	}
	if c.AllowedOrigins, err = config.Origins(c.AllowedOrigins); err != nil {
		return err
	}
	return c.completeKeys()
}

// completeKeys checks the keys of services and how user tokens are checked.
func (c *Config) completeKeys() error {
	c.APIKeys = slices.Clone(c.APIKeys)
	for i, k := range c.APIKeys {
		if c.APIKeys[i] = strings.TrimSpace(k); c.APIKeys[i] == "" {
			return config.Errorf("DIALRING_API_KEYS has an empty key: remove the stray comma")
		}
	}
	ways := 0
	for _, v := range []string{string(c.UserJWTSecret), c.UserJWKSURL, c.UserJWTPublicKeyFile} {
		if v != "" {
			ways++
		}
	}
	if ways > 1 {
		return config.Errorf("more than one of DIALRING_USER_JWT_SECRET, DIALRING_USER_JWKS_URL and DIALRING_USER_JWT_PUBLIC_KEY_FILE is set: user tokens are checked in one way, so unset the others")
	}
	if c.dev {
		if len(c.APIKeys) == 0 {
			c.APIKeys = []string{"dev"}
		}
		return nil
	}
	if ways == 0 {
		return config.Errorf("set one of DIALRING_USER_JWT_SECRET, DIALRING_USER_JWKS_URL or DIALRING_USER_JWT_PUBLIC_KEY_FILE, by which user tokens are checked (or DIALRING_DEV=true to try things on this machine)")
	}
	if len(c.APIKeys) == 0 {
		return config.Errorf("DIALRING_API_KEYS is required: the keys with which services may push (or DIALRING_DEV=true to try things on this machine)")
	}
	return nil
}

func (c *Config) embedsNATS() bool { return c.NATSURL == "" }

// hostID names this process in logs, heartbeats and ring changes.
func hostID(boot string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "locator"
	}
	return wire.HostID(host, 40) + "-" + boot
}
