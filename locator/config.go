package locator

import (
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/trust"
	"github.com/dialring/dialring/internal/wire"
)

// Secret is a setting that never shows in a log or an error.
type Secret = config.Secret

// Config is a locator's settings. The zero value of a field means its default;
// the program cmd/locator reads each from the environment, by the name in its
// tag behind DIALRING_.
type Config struct {
	NATSURL    string        `env:"NATS_URL" file:"true" desc:"NATS servers, separated by commas; empty: the locator runs one itself"`
	NATSToken  config.Secret `env:"NATS_TOKEN" desc:"token for NATS; the embedded one asks it of others (required there unless in development mode)"`
	NATSCreds  string        `env:"NATS_CREDS" desc:"credentials file for NATS, instead of a token"`
	NATSListen string        `env:"NATS_LISTEN" default:"127.0.0.1:4222" desc:"where the embedded NATS listens"`
	DataDir    string        `env:"DATA_DIR" default:"./data" desc:"store of the embedded NATS"`
	DataSync   string        `env:"DATA_SYNC" default:"always" desc:"store of the embedded NATS: always survives a power cut, interval only a killed process"`
	// Several locators whose NATS servers are one cluster.
	NATSRoutes      []string      `env:"NATS_ROUTES" desc:"embedded NATS of several locators: where those of the others listen for each other, host:port separated by commas; the own one may be among them"`
	NATSRouteListen string        `env:"NATS_ROUTE_LISTEN" default:":6222" desc:"with NATS_ROUTES: where the embedded NATS listens for the others"`
	NATSRouteSecret config.Secret `env:"NATS_ROUTE_SECRET" desc:"with NATS_ROUTES: secret that they share, at least 16 bytes; required unless in development mode"`
	NATSName        string        `env:"NATS_NAME" desc:"with NATS_ROUTES: name of the embedded NATS, which no other has, the same as long as its store; default: the store's, else the host name"`

	Cluster    string        `env:"CLUSTER" default:"dialring" desc:"name of the cluster; two of them on one NATS never mix"`
	ClusterKey config.Secret `env:"CLUSTER_KEY" desc:"key with which locators sign the ring and certify nodes, as the command dialring cluster-key makes it; several, separated by commas: the first signs; empty: who may write to NATS is believed"`

	Listen      string        `env:"LISTEN" default:":8080" desc:"address for clients and services"`
	AdminListen string        `env:"ADMIN_LISTEN" default:"127.0.0.1:8081" desc:"address for metrics, health, the dashboard and profiles"`
	AdminKey    config.Secret `env:"ADMIN_KEY" desc:"key for metrics, the dashboard and profiles, at least 16 bytes; without one they are served on loopback only, to everybody there"`
	TLSCertFile string        `env:"TLS_CERT_FILE" desc:"PEM file with the certificate, and its chain, that the listener for clients shows; it is read again when it changes; empty: no TLS there"`
	TLSKeyFile  string        `env:"TLS_KEY_FILE" desc:"PEM file with the key of TLS_CERT_FILE"`

	PeerTLSCertFile string `env:"PEER_TLS_CERT_FILE" desc:"PEM file with this process's certificate of the cluster, for servers and clients; with it calls between locators and nodes, and those to embedded NATS servers, are mutual TLS; read again when it changes"`
	PeerTLSKeyFile  string `env:"PEER_TLS_KEY_FILE" desc:"PEM file with the key of PEER_TLS_CERT_FILE"`
	PeerTLSCAFile   string `env:"PEER_TLS_CA_FILE" desc:"PEM file with the CA (in a change both CAs) of the cluster's certificates"`
	NATSTLSCAFile   string `env:"NATS_TLS_CA_FILE" desc:"PEM file with the CA of a NATS with tls:// in NATS_URL; default: PEER_TLS_CA_FILE, else the system's"`
	NATSTLSCertFile string `env:"NATS_TLS_CERT_FILE" desc:"PEM file with the certificate that is shown to a NATS that asks for one; default: PEER_TLS_CERT_FILE"`
	NATSTLSKeyFile  string `env:"NATS_TLS_KEY_FILE" desc:"PEM file with the key of NATS_TLS_CERT_FILE"`

	UserJWTSecret config.Secret `env:"USER_JWT_SECRET" desc:"user tokens: shared secret (HS256), at least 32 bytes"`
	// Until the last token that was signed with it has expired.
	UserJWTSecretPrevious config.Secret `env:"USER_JWT_SECRET_PREVIOUS" desc:"user tokens: a second shared secret that is good as well, to change USER_JWT_SECRET without refusing anybody"`
	UserJWKSURL           string        `env:"USER_JWKS_URL" desc:"user tokens: URL of a JWK set"`
	UserJWTPublicKeyFile  string        `env:"USER_JWT_PUBLIC_KEY_FILE" desc:"user tokens: PEM file with a public key (RSA, ECDSA or Ed25519)"`
	// Where an issuer signs tokens for others too, with the same key, theirs are no good here.
	UserJWTAudience string `env:"USER_JWT_AUDIENCE" desc:"user tokens: what aud must have among its audiences, such as push.example.com; empty: aud is not looked at"`
	UserJWTIssuer   string `env:"USER_JWT_ISSUER" desc:"user tokens: what iss must be exactly, such as https://login.example.com/; empty: iss is not looked at"`

	APIKeys        []string `env:"API_KEYS" desc:"keys of services that may do everything, separated by commas; these or API_KEYS_FILE are required unless in development mode, where it is dev"`
	APIKeysFile    string   `env:"API_KEYS_FILE" desc:"JSON file with digests of keys of services, each with a name and what it may do, as dialring key makes them; it is read again when it changes"`
	AllowedOrigins []string `env:"ALLOWED_ORIGINS" desc:"origins of browser pages that may locate, separated by commas"`

	Edge bool `env:"EDGE" default:"false" desc:"true: relays /n/{node}/v1/ws to the nodes of the ring, for clients that cannot reach them one by one; NODE_URL of each is then such as wss://push.example.com/n/ws-1/v1/ws"`

	SessionQueueBytes int           `env:"SESSION_QUEUE_BYTES" default:"1048576" desc:"bytes that may wait for a slow session (nodes heed it)"`
	MaxMessageBytes   int           `env:"MAX_MESSAGE_BYTES" default:"65536" desc:"largest pushed body; the same on nodes"`
	InboxMaxMessages  int           `env:"INBOX_MAX_MESSAGES" default:"1000" desc:"stored messages kept for each user; the nodes' setting counts"`
	InboxMaxAge       time.Duration `env:"INBOX_MAX_AGE" default:"72h" desc:"how long stored messages are kept; the nodes' setting counts"`
	RatePerAddress    int           `env:"RATE_PER_ADDRESS" default:"50" desc:"locates a second and address, bursts of four times that; off in development mode; -1: no limit"`
	RatePerUser       int           `env:"RATE_PER_USER" default:"10" desc:"locates a second and user, after the token was checked, bursts of four times that; off in development mode; -1: no limit"`
	MaxBatch          int           `env:"MAX_BATCH" default:"10000" desc:"users, members or messages of a call, at most 10000; the SDKs and the command line send calls of as many"`
	MaxBodyBytes      int           `env:"MAX_BODY_BYTES" default:"33554432" desc:"largest body of a call with many users, at most 32 MiB"`
	CallBytes         int           `env:"CALL_BYTES" default:"268435456" desc:"bytes of the bodies of calls under way, half of them of one API key, at least four of MAX_BODY_BYTES; others are refused, but for keys that have few"`
	MaxConnections    int           `env:"MAX_CONNECTIONS" default:"10000" desc:"connections of clients and services at a time, but for relayed sessions; past it the one that is idle for longest is closed; the limit of open files is never exceeded"`
	CallsPerKey       int           `env:"CALLS_PER_KEY" default:"1000" desc:"calls of one API key under way at a time, others get 429; a stream of pushes is one; off in development mode; -1: no limit"`
	ReservedFiles     int           `env:"RESERVED_FILES" default:"200" desc:"of the limit of open files, those that are kept for NATS, nodes, listeners and logs"`
	NATSPendingBytes  int           `env:"NATS_PENDING_BYTES" default:"67108864" desc:"bytes that NATS has sent and this process has not handled, a subscription, then some are dropped; and that wait for a connection of the embedded NATS, then it is closed"`
	TrustedProxies    []string      `env:"TRUSTED_PROXIES" desc:"networks (CIDR) or addresses of proxies in front, separated by commas, whose X-Forwarded-For counts as the client's address; empty: the connection's address counts and no header does"`

	OTLPEndpoint string  `env:"OTLP_ENDPOINT" desc:"URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318, to trace pushes; empty: nothing is traced"`
	TraceRatio   float64 `env:"TRACE_RATIO" desc:"part of the pushes without a traceparent that are traced, 0 to 1; default 0: only those whose service says so"`

	Dev       string `env:"DEV" default:"false" desc:"true: development mode, on loopback only; insecure: also beyond it"`
	LogLevel  string `env:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`
	LogFormat string `env:"LOG_FORMAT" default:"text" desc:"text or json"`

	// Log takes the locator's log; default slog.Default.
	Log *slog.Logger

	dev       bool
	authority *trust.Authority
	proxies   httpd.Proxies // of TrustedProxies
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
		for name, v := range map[string]string{"NATS_LISTEN": c.NATSListen, "DATA_DIR": c.DataDir, "DATA_SYNC": c.DataSync, "NATS_ROUTES": strings.Join(c.NATSRoutes, "")} {
			if v != "" {
				return config.Errorf("DIALRING_NATS_URL names a NATS to use and DIALRING_%s is for an embedded one: unset one of the two", name)
			}
		}
	}
	if err := c.completeRoutes(); err != nil {
		return err
	}
	for _, l := range []struct {
		name string
		addr *string
		def  string
	}{{"LISTEN", &c.Listen, ":8080"}, {"ADMIN_LISTEN", &c.AdminListen, "127.0.0.1:8081"}, {"NATS_LISTEN", &c.NATSListen, "127.0.0.1:4222"}, {"NATS_ROUTE_LISTEN", &c.NATSRouteListen, ":6222"}} {
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
	if c.ClusterKey != "" {
		if c.authority, err = trust.ParseAuthority(c.Cluster, string(c.ClusterKey)); err != nil {
			return config.Errorf("DIALRING_CLUSTER_KEY: %v", err)
		}
	}
	if err := config.AdminKey(c.AdminKey); err != nil {
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
		"MAX_CONNECTIONS":     {c.MaxConnections, 1, 1 << 20},
		"MAX_BATCH":           {c.MaxBatch, 1, wire.MaxUsersPerCall},
		"MAX_BODY_BYTES":      {c.MaxBodyBytes, 1 << 10, wire.MaxCallBytes},
		"CALL_BYTES":          {c.CallBytes, 1, 1 << 40},
		"RESERVED_FILES":      {c.ReservedFiles, config.LeastReservedFiles, 1 << 20},
		"NATS_PENDING_BYTES":  {c.NATSPendingBytes, config.LeastNATSPending, 1 << 30},
	} {
		if err := config.Range(name, v.v, v.from, v.to); err != nil {
			return err
		}
	}
	if least := 4 * max(c.MaxBodyBytes, c.MaxMessageBytes+broadcastEnvelope); c.CallBytes < least {
		return config.Errorf("DIALRING_CALL_BYTES is %d; it must be at least %d, which is four of the largest body of a call: lower DIALRING_MAX_BODY_BYTES (%d) too", c.CallBytes, least, c.MaxBodyBytes)
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
	if c.proxies, err = config.Networks("TRUSTED_PROXIES", c.TrustedProxies); err != nil {
		return err
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	if err := config.OTLPEndpoint(c.OTLPEndpoint); err != nil {
		return err
	}
	if c.TraceRatio < 0 || c.TraceRatio > 1 {
		return config.Errorf("DIALRING_TRACE_RATIO is %v; it must be within 0 and 1", c.TraceRatio)
	}
	return c.completeKeys()
}

// certificate is what clients are shown, peerTLS by what the programs of the cluster know each
// other, and natsTLS what is between this one and a NATS of its own.
func (c *Config) certificate() config.TLSFiles {
	return config.TLSFiles{Cert: c.TLSCertFile, Key: c.TLSKeyFile}
}

func (c *Config) peerTLS() config.TLSFiles {
	return config.TLSFiles{Prefix: "PEER_", Cert: c.PeerTLSCertFile, Key: c.PeerTLSKeyFile, CA: c.PeerTLSCAFile, Mutual: true}
}

func (c *Config) natsTLS() config.TLSFiles {
	return config.TLSFiles{Prefix: "NATS_", Cert: c.NATSTLSCertFile, Key: c.NATSTLSKeyFile, CA: c.NATSTLSCAFile}
}

func (c *Config) checkTLS() error {
	if err := c.certificate().Check(); err != nil {
		return err
	}
	if err := c.peerTLS().Check(); err != nil {
		return err
	}
	if n := c.natsTLS(); c.embedsNATS() && !n.None() {
		return config.Errorf("%s is for a NATS server of its own: set DIALRING_NATS_URL too; the embedded one takes DIALRING_PEER_TLS_CERT_FILE", n.Names())
	}
	return config.NATSTLS(c.natsTLS(), c.NATSURL)
}

// minRouteSecret is as much as nobody guesses.
const minRouteSecret = 16

var natsName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)

// completeRoutes checks what makes the embedded NATS one of several.
func (c *Config) completeRoutes() error {
	if len(c.NATSRoutes) == 0 {
		for name, v := range map[string]string{"NATS_ROUTE_LISTEN": c.NATSRouteListen, "NATS_ROUTE_SECRET": string(c.NATSRouteSecret), "NATS_NAME": c.NATSName} {
			if v != "" {
				return config.Errorf("DIALRING_%s is set and DIALRING_NATS_ROUTES is not: it is for embedded NATS servers of several locators, so set both, or unset it", name)
			}
		}
		return nil
	}
	c.NATSRoutes = slices.Clone(c.NATSRoutes)
	for i, r := range c.NATSRoutes {
		c.NATSRoutes[i] = strings.TrimSpace(r)
		host, port, err := net.SplitHostPort(c.NATSRoutes[i])
		if n, _ := strconv.ParseUint(port, 10, 16); err != nil || host == "" || n == 0 {
			// It is not shown: written as a URL it may have a password in it.
			return config.Errorf("entry %d of DIALRING_NATS_ROUTES cannot be used; it must be host:port of the DIALRING_NATS_ROUTE_LISTEN of each locator, separated by commas", i+1)
		}
	}
	switch n := len(c.NATSRouteSecret); {
	case n == 0 && !c.dev:
		return config.Errorf("DIALRING_NATS_ROUTE_SECRET is required with DIALRING_NATS_ROUTES: who knows it can read and change everything that the cluster stores; give all locators the same one, of at least %d bytes", minRouteSecret)
	case n > 0 && n < minRouteSecret:
		return config.Errorf("DIALRING_NATS_ROUTE_SECRET has %d bytes; it must have at least %d", n, minRouteSecret)
	}
	if c.NATSName != "" && !natsName.MatchString(c.NATSName) {
		return config.Errorf("DIALRING_NATS_NAME is %q; it has 1 to 63 characters, of A-Z a-z 0-9 _ -", c.NATSName)
	}
	return nil
}

// completeKeys checks the keys of services and how user tokens are checked.
func (c *Config) completeKeys() error {
	if err := c.completeAPIKeys(); err != nil {
		return err
	}
	ways := 0
	for _, v := range []string{string(c.UserJWTSecret), c.UserJWKSURL, c.UserJWTPublicKeyFile} {
		if v != "" {
			ways++
		}
	}
	if c.UserJWKSURL != "" && !config.IsHTTPURL(c.UserJWKSURL) {
		return config.Errorf("DIALRING_USER_JWKS_URL must be an http or https URL such as https://login.example.com/jwks.json, without a password in it: what is there is public")
	}
	if ways > 1 {
		return config.Errorf("more than one of DIALRING_USER_JWT_SECRET, DIALRING_USER_JWKS_URL and DIALRING_USER_JWT_PUBLIC_KEY_FILE is set: user tokens are checked in one way, so unset the others")
	}
	if c.UserJWTSecretPrevious != "" {
		if c.UserJWTSecret == "" {
			return config.Errorf("DIALRING_USER_JWT_SECRET_PREVIOUS is set and DIALRING_USER_JWT_SECRET is not: the first is what is good beside the second")
		}
		if c.UserJWTSecretPrevious == c.UserJWTSecret {
			return config.Errorf("DIALRING_USER_JWT_SECRET_PREVIOUS and DIALRING_USER_JWT_SECRET are the same: unset the first, or set the second to the new secret")
		}
	}
	for name, v := range map[string]string{"AUDIENCE": c.UserJWTAudience, "ISSUER": c.UserJWTIssuer} {
		if v != "" && c.dev && ways == 0 {
			return config.Errorf("DIALRING_USER_JWT_%s is set, and nothing by which user tokens are checked: set one of DIALRING_USER_JWT_SECRET, DIALRING_USER_JWKS_URL and DIALRING_USER_JWT_PUBLIC_KEY_FILE too, or unset it", name)
		}
	}
	if !c.dev && ways == 0 {
		return config.Errorf("set one of DIALRING_USER_JWT_SECRET, DIALRING_USER_JWKS_URL or DIALRING_USER_JWT_PUBLIC_KEY_FILE, by which user tokens are checked (or DIALRING_DEV=true to try things on this machine)")
	}
	return nil
}

func (c *Config) embedsNATS() bool { return c.NATSURL == "" }

// hostID names this process in logs, heartbeats and ring changes.
func hostID(boot string) string { return wire.HostID(hostName(), 40) + "-" + boot }

func hostName() string {
	host, err := os.Hostname()
	if err != nil {
		return "locator"
	}
	return host
}
