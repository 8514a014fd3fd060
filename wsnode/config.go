package wsnode

import (
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/trust"
	"github.com/dialring/dialring/internal/wire"
)

// Secret is a setting that never shows in a log or an error.
type Secret = config.Secret

// Config is a node's settings. The zero value of a field means its default;
// the program cmd/wsnode reads each from the environment, by the name in its
// tag behind DIALRING_.
type Config struct {
	NATSURL   string        `env:"NATS_URL" default:"nats://127.0.0.1:4222" file:"true" desc:"NATS servers, separated by commas"`
	NATSToken config.Secret `env:"NATS_TOKEN" desc:"token for NATS"`
	NATSCreds string        `env:"NATS_CREDS" desc:"credentials file for NATS, instead of a token"`
	Cluster   string        `env:"CLUSTER" default:"dialring" desc:"name of the cluster; two of them on one NATS never mix"`
	NodeKey   config.Secret `env:"NODE_KEY" desc:"key of this node, as the command dialring node-key makes it; required where locators have a CLUSTER_KEY, and then it believes no ring and no locator without one"`

	NodeID      string        `env:"NODE_ID" desc:"id of this node, the same after a restart; default: the host name"`
	NodeURL     string        `env:"NODE_URL" desc:"ws or wss URL that clients are given; required unless in development mode"`
	PeerURL     string        `env:"PEER_URL" desc:"http or https URL where locators and nodes reach this node; required unless in development mode"`
	Listen      string        `env:"LISTEN" default:":8090" desc:"address for clients"`
	PeerListen  string        `env:"PEER_LISTEN" default:":8092" desc:"address for locators and nodes"`
	AdminListen string        `env:"ADMIN_LISTEN" default:"127.0.0.1:8091" desc:"address for metrics, health, and profiles"`
	AdminKey    config.Secret `env:"ADMIN_KEY" desc:"key for metrics and profiles, at least 16 bytes; without one they are served on loopback only, to everybody there"`
	TLSCertFile string        `env:"TLS_CERT_FILE" desc:"PEM file with the certificate, and its chain, that the listener for clients shows; it is read again when it changes; empty: no TLS there"`
	TLSKeyFile  string        `env:"TLS_KEY_FILE" desc:"PEM file with the key of TLS_CERT_FILE"`

	PeerTLSCertFile string `env:"PEER_TLS_CERT_FILE" desc:"PEM file with this process's certificate of the cluster, for servers and clients; with it calls between locators and nodes are mutual TLS; read again when it changes"`
	PeerTLSKeyFile  string `env:"PEER_TLS_KEY_FILE" desc:"PEM file with the key of PEER_TLS_CERT_FILE"`
	PeerTLSCAFile   string `env:"PEER_TLS_CA_FILE" desc:"PEM file with the CA (in a change both CAs) of the cluster's certificates"`
	NATSTLSCAFile   string `env:"NATS_TLS_CA_FILE" desc:"PEM file with the CA of a NATS with tls:// in NATS_URL; default: PEER_TLS_CA_FILE, else the system's"`
	NATSTLSCertFile string `env:"NATS_TLS_CERT_FILE" desc:"PEM file with the certificate that is shown to a NATS that asks for one; default: PEER_TLS_CERT_FILE"`
	NATSTLSKeyFile  string `env:"NATS_TLS_KEY_FILE" desc:"PEM file with the key of NATS_TLS_CERT_FILE"`

	Weight        int           `env:"WEIGHT" default:"1" desc:"share of the ring, 1 to 64"`
	MaxHandshakes int           `env:"MAX_HANDSHAKES" default:"2048" desc:"connections at a time that are no sessions, or not yet; past it the oldest that has not asked is closed"`
	AcceptRate    int           `env:"ACCEPT_RATE" default:"500" desc:"handshakes a second that it asks others to send at most"`
	MoveDeadline  time.Duration `env:"MOVE_DEADLINE" default:"20s" desc:"how long a session that was told to move may stay"`
	DrainTimeout  time.Duration `env:"DRAIN_TIMEOUT" default:"60s" desc:"longest time from SIGTERM until it closes the sessions that are left"`
	RestartGrace  time.Duration `env:"RESTART_GRACE" default:"0s" desc:"how long its place in the ring is kept for its next process after it ended, up to 1h; 0: not at all, and SIGTERM drains it"`

	SessionLifetime time.Duration `env:"SESSION_LIFETIME" default:"24h" desc:"how long a connection lasts at most before its client is moved to a new one, at least 1m"`

	MaxSessions        int    `env:"MAX_SESSIONS" default:"0" desc:"sessions of this node at a time; 0: as many as the limit of open files has room for, which is never exceeded"`
	MaxSessionsPerUser int    `env:"MAX_SESSIONS_PER_USER" default:"16" desc:"sessions of one user at a time"`
	DevicePolicy       string `env:"DEVICE_POLICY" default:"replace" desc:"second connection of a device: replace, allow or reject"`
	SessionPolicy      string `env:"SESSION_POLICY" default:"oldest" desc:"past the limit of sessions: close the oldest, or refuse the newest"`
	SessionQueueBytes  int    `env:"SESSION_QUEUE_BYTES" default:"1048576" desc:"bytes that may wait for a slow session before it is closed"`
	NodeQueueBytes     int    `env:"NODE_QUEUE_BYTES" default:"0" desc:"bytes that may wait for all slow sessions together before those with the most are closed; 0: a quarter of MEMORY_LIMIT"`
	MemoryLimit        int    `env:"MEMORY_LIMIT" default:"0" desc:"bytes of memory above which this node takes no more sessions; 0: three quarters of what its control group or the machine has; -1: no limit"`
	MaxMessageBytes    int    `env:"MAX_MESSAGE_BYTES" default:"65536" desc:"largest pushed body"`

	InboxMaxMessages int           `env:"INBOX_MAX_MESSAGES" default:"1000" desc:"stored messages kept for each user"`
	InboxMaxAge      time.Duration `env:"INBOX_MAX_AGE" default:"72h" desc:"how long stored messages are kept"`
	InboxPartitions  int           `env:"INBOX_PARTITIONS" default:"0" desc:"streams that hold the messages, 1 to 256; 0: eight in a NATS cluster, else one; counts when a cluster's first node makes them, and is fixed then"`
	InboxReplicas    int           `env:"INBOX_REPLICAS" default:"0" desc:"NATS servers that keep each message, 1 to 5; 0: three in a NATS cluster, else one"`

	InboxKeysFile string `env:"INBOX_KEYS_FILE" desc:"JSON file with the keys by which what stored messages carry is sealed, as deploy/README.md has it; it is read again when it changes; empty: they are stored as they are"`

	IdempotencyWindow time.Duration `env:"IDEMPOTENCY_WINDOW" default:"2m" desc:"how long idempotency keys are remembered, 1s to 1h"`

	PresenceGrace time.Duration `env:"PRESENCE_GRACE" default:"10s" desc:"how long a user without a session counts as online still, for presence events, up to 10m"`

	App            string        `env:"APP" desc:"who receives what clients send to the application: nats (requests on the subject <cluster>.app), jetstream (kept in the stream <cluster>_app), or the http or https URL of a webhook; empty: nobody"`
	AppSecret      config.Secret `env:"APP_SECRET" desc:"with which webhooks are signed, at least 32 bytes; required with one"`
	AppTimeout     time.Duration `env:"APP_TIMEOUT" default:"10s" desc:"how long a client waits for the application at most, with repeats, 100ms to 1m"`
	AppConcurrency int           `env:"APP_CONCURRENCY" default:"64" desc:"webhooks under way at the same time, a quarter of them of one user; others wait"`
	SendRate       int           `env:"SEND_RATE" default:"20" desc:"sends of a session a second, bursts of four times that"`
	SendQueueBytes int           `env:"SEND_QUEUE_BYTES" default:"67108864" desc:"bytes of the sends of all sessions that may wait for their answer, a quarter of them of one user; others are refused"`

	FrameRate int `env:"FRAME_RATE" default:"0" desc:"frames of a client a second, bursts of four times that; an ack for each message does not count; 0: five times SEND_RATE, 100 at least"`
	ByteRate  int `env:"BYTE_RATE" default:"0" desc:"bytes of a client a second, bursts of four times that; 0: twice what SEND_RATE allows of messages of MAX_MESSAGE_BYTES"`

	RatePerAddress   int `env:"RATE_PER_ADDRESS" default:"50" desc:"dials a second and address, bursts of four times that; off in development mode; -1: no limit"`
	RatePerUser      int `env:"RATE_PER_USER" default:"10" desc:"dials a second and user, bursts of four times that, or of twice MAX_SESSIONS_PER_USER if that is more; moves do not count; off in development mode; -1: no limit"`
	ReservedFiles    int `env:"RESERVED_FILES" default:"200" desc:"of the limit of open files, those that are kept for NATS, locators, other nodes, listeners and logs"`
	NATSPendingBytes int `env:"NATS_PENDING_BYTES" default:"67108864" desc:"bytes that NATS has sent and this process has not handled, a subscription; then some are dropped, and read again"`

	TrustedProxies []string `env:"TRUSTED_PROXIES" desc:"networks (CIDR) or addresses of proxies in front, separated by commas, whose X-Forwarded-For counts as the client's address; empty: the connection's address counts and no header does"`
	AllowedOrigins []string `env:"ALLOWED_ORIGINS" desc:"origins of browser pages that may connect, separated by commas"`

	OTLPEndpoint string `env:"OTLP_ENDPOINT" desc:"URL of an OpenTelemetry collector (OTLP over HTTP), to trace those pushes that locators trace; empty: nothing is traced"`

	Dev       string `env:"DEV" default:"false" desc:"true: development mode, on loopback only; insecure: also beyond it"`
	LogLevel  string `env:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`
	LogFormat string `env:"LOG_FORMAT" default:"text" desc:"text or json"`

	// PingInterval is the time between WebSocket pings; default 25 s. Two
	// unanswered ones end a session.
	PingInterval time.Duration
	// Log takes the node's log; default slog.Default.
	Log *slog.Logger

	dev     bool
	nodeKey *trust.NodeKey
	proxies httpd.Proxies // of TrustedProxies
}

// complete puts the defaults in and checks everything that can be checked
// without I/O. Its errors name the setting and say what to do.
func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.PingInterval == 0 {
		c.PingInterval = 25 * time.Second
	}
	var err error
	if c.dev, _, err = config.Dev(c.Dev); err != nil {
		return err
	}
	for _, l := range []struct {
		name string
		addr *string
		def  string
	}{{"LISTEN", &c.Listen, ":8090"}, {"PEER_LISTEN", &c.PeerListen, ":8092"}, {"ADMIN_LISTEN", &c.AdminListen, "127.0.0.1:8091"}} {
		if err := config.Listen(l.name, l.addr, l.def, c.Dev); err != nil {
			return err
		}
	}
	if err := config.Defaults(c); err != nil {
		return err
	}
	if c.NATSToken != "" && c.NATSCreds != "" {
		return config.Errorf("DIALRING_NATS_TOKEN and DIALRING_NATS_CREDS are both set; NATS takes one of them, so unset the other")
	}
	if err := config.Cluster(c.Cluster); err != nil {
		return err
	}
	if err := config.AdminKey(c.AdminKey); err != nil {
		return err
	}
	if c.NATSURL != "" {
		if err := config.NATSURL(c.NATSURL); err != nil {
			return err
		}
	}
	if c.NodeID == "" {
		host, err := os.Hostname()
		if err != nil {
			return config.Errorf("the host name is unknown (%v): set DIALRING_NODE_ID", err)
		}
		c.NodeID = wire.HostID(host, wire.MaxNodeID)
	}
	if err := wire.CheckNode(c.NodeID); err != nil {
		return config.Errorf("DIALRING_NODE_ID: %v", err)
	}
	if c.NodeKey != "" {
		if c.nodeKey, err = trust.ParseNodeKey(c.Cluster, c.NodeID, string(c.NodeKey)); err != nil {
			return config.Errorf("DIALRING_NODE_KEY: %v", err)
		}
	}
	for name, v := range map[string]struct{ v, from, to int }{
		"WEIGHT":                {c.Weight, 1, ring.MaxWeight},
		"ACCEPT_RATE":           {c.AcceptRate, 1, 1_000_000},
		"MAX_HANDSHAKES":        {c.MaxHandshakes, 1, 1_000_000},
		"MAX_SESSIONS":          {c.MaxSessions, 0, math.MaxInt32},
		"MAX_SESSIONS_PER_USER": {c.MaxSessionsPerUser, 1, 10_000},
		"MAX_MESSAGE_BYTES":     {c.MaxMessageBytes, 1, 1 << 20},
		"SESSION_QUEUE_BYTES":   {c.SessionQueueBytes, 1 << 10, 1 << 30},
		"NODE_QUEUE_BYTES":      {c.NodeQueueBytes, 0, 1 << 50},
		"INBOX_MAX_MESSAGES":    {c.InboxMaxMessages, 1, 1_000_000},
		"INBOX_PARTITIONS":      {c.InboxPartitions, 0, 256},
		"INBOX_REPLICAS":        {c.InboxReplicas, 0, 5},
		"APP_CONCURRENCY":       {c.AppConcurrency, 1, 10_000},
		"SEND_RATE":             {c.SendRate, 1, 100_000},
		"SEND_QUEUE_BYTES":      {c.SendQueueBytes, 1 << 10, 1 << 50},
		"FRAME_RATE":            {c.FrameRate, 0, 10_000_000},
		"BYTE_RATE":             {c.ByteRate, 0, 1 << 40},
		"RESERVED_FILES":        {c.ReservedFiles, config.LeastReservedFiles, 1 << 20},
		"NATS_PENDING_BYTES":    {c.NATSPendingBytes, config.LeastNATSPending, 1 << 30},
	} {
		if err := config.Range(name, v.v, v.from, v.to); err != nil {
			return err
		}
	}
	if c.MemoryLimit != 0 && c.MemoryLimit != -1 && c.MemoryLimit < leastMemory {
		return config.Errorf("DIALRING_MEMORY_LIMIT is %d; it is in bytes, at least %d; 0 means a part of what there is, -1 no limit", c.MemoryLimit, leastMemory)
	}
	if c.SendQueueBytes < c.MaxMessageBytes+envelope {
		return config.Errorf("DIALRING_SEND_QUEUE_BYTES (%d) does not hold one send of DIALRING_MAX_MESSAGE_BYTES (%d) in its frame: make it at least %d", c.SendQueueBytes, c.MaxMessageBytes, c.MaxMessageBytes+envelope)
	}
	if c.NodeQueueBytes > 0 && c.NodeQueueBytes < c.SessionQueueBytes {
		return config.Errorf("DIALRING_NODE_QUEUE_BYTES (%d), of all sessions, is less than DIALRING_SESSION_QUEUE_BYTES (%d), of one: raise the first or lower the second", c.NodeQueueBytes, c.SessionQueueBytes)
	}
	if c.FrameRate == 0 {
		c.FrameRate = max(100, 5*c.SendRate)
	}
	if c.ByteRate == 0 {
		c.ByteRate = 2 * c.SendRate * c.MaxMessageBytes
	}
	for name, d := range map[string]time.Duration{"MOVE_DEADLINE": c.MoveDeadline, "DRAIN_TIMEOUT": c.DrainTimeout, "INBOX_MAX_AGE": c.InboxMaxAge} {
		if d < time.Second {
			return config.Errorf("DIALRING_%s is %s; it must be at least 1s", name, d)
		}
	}
	if c.IdempotencyWindow < time.Second || c.IdempotencyWindow > time.Hour {
		return config.Errorf("DIALRING_IDEMPOTENCY_WINDOW is %s; it must be within 1s to 1h", c.IdempotencyWindow)
	}
	if err := c.checkApp(); err != nil {
		return err
	}
	if c.PresenceGrace < 0 || c.PresenceGrace > 10*time.Minute {
		return config.Errorf("DIALRING_PRESENCE_GRACE is %s; it must be within 0s to 10m", c.PresenceGrace)
	}
	if c.RestartGrace < 0 || c.RestartGrace > time.Hour {
		return config.Errorf("DIALRING_RESTART_GRACE is %s; it must be within 0s to 1h", c.RestartGrace)
	}
	if c.SessionLifetime < time.Minute {
		return config.Errorf("DIALRING_SESSION_LIFETIME is %s; it must be at least 1m", c.SessionLifetime)
	}
	if c.SessionQueueBytes < c.MaxMessageBytes*3/2 {
		return config.Errorf("DIALRING_SESSION_QUEUE_BYTES (%d) does not hold one message of DIALRING_MAX_MESSAGE_BYTES (%d) in its frame: make it at least %d", c.SessionQueueBytes, c.MaxMessageBytes, c.MaxMessageBytes*3/2)
	}
	if err := config.OneOf("DEVICE_POLICY", c.DevicePolicy, "replace", "allow", "reject"); err != nil {
		return err
	}
	if err := config.OneOf("SESSION_POLICY", c.SessionPolicy, "oldest", "newest"); err != nil {
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
	if !c.dev {
		if c.NodeURL == "" {
			return config.Errorf("DIALRING_NODE_URL is required: the ws:// or wss:// URL under which clients reach this node (or DIALRING_DEV=true to try things on this machine)")
		}
		if c.PeerURL == "" {
			return config.Errorf("DIALRING_PEER_URL is required: the http:// or https:// URL under which locators reach this node (or DIALRING_DEV=true to try things on this machine)")
		}
	}
	return c.checkURLs()
}

// certificate is what clients are shown, peerTLS by what the programs know each other, and
// natsTLS what is between this one and NATS.
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
	return config.NATSTLS(c.natsTLS(), c.NATSURL)
}

// leastMemory is what a node needs to start with.
const leastMemory = 32 << 20

// checkApp checks who the application is.
func (c *Config) checkApp() error {
	if c.AppTimeout < 100*time.Millisecond || c.AppTimeout > time.Minute {
		return config.Errorf("DIALRING_APP_TIMEOUT is %s; it must be within 100ms to 1m", c.AppTimeout)
	}
	hook := c.webhooks()
	if hook {
		if !config.IsHTTPURL(c.App) {
			return config.Errorf("DIALRING_APP must be nats, jetstream, or the URL of a webhook like https://app.example.com/dialring, without a password in it")
		}
		if len(c.AppSecret) < wire.MinWebhookSecret {
			return config.Errorf("DIALRING_APP_SECRET has %d bytes; webhooks are signed with at least 32, such as from: openssl rand -base64 32", len(c.AppSecret))
		}
	} else if c.AppSecret != "" {
		return config.Errorf("DIALRING_APP_SECRET is for webhooks: set DIALRING_APP to the URL of one, or unset the secret")
	}
	return nil
}

// checkURLs checks the advertised addresses that are given.
func (c *Config) checkURLs() error {
	if c.NodeURL != "" {
		if err := cluster.CheckAddress(c.NodeURL, c.dev, "ws", "wss"); err != nil {
			return config.Errorf("DIALRING_NODE_URL: %v", err)
		}
		if u, err := url.Parse(c.NodeURL); err == nil && (u.Path == "" || u.Path == "/") {
			c.NodeURL = u.JoinPath(pathWS).String()
		}
	}
	if c.PeerURL != "" {
		if err := cluster.CheckAddress(c.PeerURL, c.dev, "http", "https"); err != nil {
			return config.Errorf("DIALRING_PEER_URL: %v", err)
		}
		if !c.peerTLS().None() && !strings.HasPrefix(strings.ToLower(c.PeerURL), "https:") {
			return config.Errorf("DIALRING_PEER_URL is %q, and with DIALRING_PEER_TLS_CERT_FILE this node takes TLS only: write https://, or unset the files", c.PeerURL)
		}
	}
	return nil
}

// advertise fills in the addresses that development mode derives from the
// listeners.
func (c *Config) advertise(public, peer net.Addr) {
	if c.NodeURL == "" {
		scheme := "ws://"
		if c.TLSCertFile != "" {
			scheme = "wss://"
		}
		c.NodeURL = scheme + reachable(public) + pathWS
	}
	if c.PeerURL == "" {
		scheme := "http://"
		if !c.peerTLS().None() {
			scheme = "https://"
		}
		c.PeerURL = scheme + reachable(peer)
	}
}

// reachable replaces the unspecified address by loopback.
func reachable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// webhooks tells whether the application is asked by HTTP.
func (c *Config) webhooks() bool { return c.App != "" && c.App != appNATS && c.App != appJetStream }
