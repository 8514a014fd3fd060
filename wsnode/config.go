package wsnode

import (
	"log/slog"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// Secret is a setting that never shows in a log or an error.
type Secret = config.Secret

// Config is a node's settings. The zero value of a field means its default;
// the program cmd/wsnode reads each from the environment, by the name in its
// tag behind DIALRING_.
type Config struct {
	NATSURL   string        `env:"NATS_URL" default:"nats://127.0.0.1:4222" desc:"NATS servers, separated by commas"`
	NATSToken config.Secret `env:"NATS_TOKEN" desc:"token for NATS"`
	NATSCreds string        `env:"NATS_CREDS" desc:"credentials file for NATS, instead of a token"`
	Cluster   string        `env:"CLUSTER" default:"dialring" desc:"name of the cluster; two of them on one NATS never mix"`

	NodeID      string `env:"NODE_ID" desc:"id of this node, the same after a restart; default: the host name"`
	NodeURL     string `env:"NODE_URL" desc:"ws or wss URL that clients are given; required unless in development mode"`
	PeerURL     string `env:"PEER_URL" desc:"http or https URL where locators and nodes reach this node; required unless in development mode"`
	Listen      string `env:"LISTEN" default:":8090" desc:"address for clients"`
	PeerListen  string `env:"PEER_LISTEN" default:":8092" desc:"address for locators and nodes"`
	AdminListen string `env:"ADMIN_LISTEN" default:"127.0.0.1:8091" desc:"address for metrics, health and, on loopback, profiles"`

	Weight       int           `env:"WEIGHT" default:"1" desc:"share of the ring, 1 to 64"`
	AcceptRate   int           `env:"ACCEPT_RATE" default:"500" desc:"handshakes a second that it asks others to send at most"`
	MoveDeadline time.Duration `env:"MOVE_DEADLINE" default:"20s" desc:"how long a session that was told to move may stay"`
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" default:"60s" desc:"longest time from SIGTERM until it closes the sessions that are left"`
	RestartGrace time.Duration `env:"RESTART_GRACE" default:"0s" desc:"how long its place in the ring is kept for its next process after it ended, up to 1h; 0: not at all, and SIGTERM drains it"`

	SessionLifetime time.Duration `env:"SESSION_LIFETIME" default:"24h" desc:"how long a connection lasts at most before its client is moved to a new one, at least 1m"`

	MaxSessionsPerUser int    `env:"MAX_SESSIONS_PER_USER" default:"16" desc:"sessions of one user at a time"`
	DevicePolicy       string `env:"DEVICE_POLICY" default:"replace" desc:"second connection of a device: replace, allow or reject"`
	SessionPolicy      string `env:"SESSION_POLICY" default:"oldest" desc:"past the limit of sessions: close the oldest, or refuse the newest"`
	SessionQueueBytes  int    `env:"SESSION_QUEUE_BYTES" default:"1048576" desc:"bytes that may wait for a slow session before it is closed"`
	MaxMessageBytes    int    `env:"MAX_MESSAGE_BYTES" default:"65536" desc:"largest pushed body"`

	InboxMaxMessages int           `env:"INBOX_MAX_MESSAGES" default:"1000" desc:"stored messages kept for each user"`
	InboxMaxAge      time.Duration `env:"INBOX_MAX_AGE" default:"72h" desc:"how long stored messages are kept"`
	InboxPartitions  int           `env:"INBOX_PARTITIONS" default:"0" desc:"streams that hold the messages, 1 to 256; 0: eight in a NATS cluster, else one; counts when a cluster's first node makes them, and is fixed then"`
	InboxReplicas    int           `env:"INBOX_REPLICAS" default:"0" desc:"NATS servers that keep each message, 1 to 5; 0: three in a NATS cluster, else one"`

	IdempotencyWindow time.Duration `env:"IDEMPOTENCY_WINDOW" default:"2m" desc:"how long idempotency keys are remembered, 1s to 1h"`

	PresenceGrace time.Duration `env:"PRESENCE_GRACE" default:"10s" desc:"how long a user without a session counts as online still, for presence events, up to 10m"`

	App            string        `env:"APP" desc:"who receives what clients send to the application: nats (requests on the subject <cluster>.app), jetstream (kept in the stream <cluster>_app), or the http or https URL of a webhook; empty: nobody"`
	AppSecret      config.Secret `env:"APP_SECRET" desc:"with which webhooks are signed, at least 32 bytes; required with one"`
	AppTimeout     time.Duration `env:"APP_TIMEOUT" default:"10s" desc:"how long a client waits for the application at most, with repeats, 100ms to 1m"`
	AppConcurrency int           `env:"APP_CONCURRENCY" default:"64" desc:"webhooks under way at the same time; others wait"`
	SendRate       int           `env:"SEND_RATE" default:"20" desc:"sends of a session a second, bursts of four times that"`

	RatePerAddress int      `env:"RATE_PER_ADDRESS" default:"50" desc:"dials a second and address, bursts of four times that; off in development mode; -1: no limit"`
	AllowedOrigins []string `env:"ALLOWED_ORIGINS" desc:"origins of browser pages that may connect, separated by commas"`

	Dev       string `env:"DEV" default:"false" desc:"true: development mode, on loopback only; insecure: also beyond it"`
	LogLevel  string `env:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`
	LogFormat string `env:"LOG_FORMAT" default:"text" desc:"text or json"`

	// PingInterval is the time between WebSocket pings; default 25 s. Two
	// unanswered ones end a session.
	PingInterval time.Duration
	// Log takes the node's log; default slog.Default.
	Log *slog.Logger

	dev bool
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
	for name, v := range map[string]struct{ v, from, to int }{
		"WEIGHT":                {c.Weight, 1, ring.MaxWeight},
		"ACCEPT_RATE":           {c.AcceptRate, 1, 1_000_000},
		"MAX_SESSIONS_PER_USER": {c.MaxSessionsPerUser, 1, 10_000},
		"MAX_MESSAGE_BYTES":     {c.MaxMessageBytes, 1, 1 << 20},
		"SESSION_QUEUE_BYTES":   {c.SessionQueueBytes, 1 << 10, 1 << 30},
		"INBOX_MAX_MESSAGES":    {c.InboxMaxMessages, 1, 1_000_000},
		"INBOX_PARTITIONS":      {c.InboxPartitions, 0, 256},
		"INBOX_REPLICAS":        {c.InboxReplicas, 0, 5},
		"APP_CONCURRENCY":       {c.AppConcurrency, 1, 10_000},
		"SEND_RATE":             {c.SendRate, 1, 100_000},
	} {
		if err := config.Range(name, v.v, v.from, v.to); err != nil {
			return err
		}
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

// checkApp checks who the application is.
func (c *Config) checkApp() error {
	if c.AppTimeout < 100*time.Millisecond || c.AppTimeout > time.Minute {
		return config.Errorf("DIALRING_APP_TIMEOUT is %s; it must be within 100ms to 1m", c.AppTimeout)
	}
	hook := c.App != "" && c.App != appNATS && c.App != appJetStream
	if hook {
		u, err := url.Parse(c.App)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
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
	}
	return nil
}

// advertise fills in the addresses that development mode derives from the
// listeners.
func (c *Config) advertise(public, peer net.Addr) {
	if c.NodeURL == "" {
		c.NodeURL = "ws://" + reachable(public) + pathWS
	}
	if c.PeerURL == "" {
		c.PeerURL = "http://" + reachable(peer)
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
