package config_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// The settings of the contract (section 6), with their defaults.
var (
	both = map[string]string{
		"CLUSTER": "dialring", "SESSION_QUEUE_BYTES": "1048576", "MAX_MESSAGE_BYTES": "65536", "INBOX_MAX_MESSAGES": "1000", "INBOX_MAX_AGE": "72h",
		"RATE_PER_ADDRESS": "50", "ALLOWED_ORIGINS": "", "DEV": "false", "LOG_LEVEL": "info", "LOG_FORMAT": "text", "NATS_TOKEN": "", "NATS_CREDS": "",
	}
	ofLocator = map[string]string{
		"NATS_URL": "", "NATS_LISTEN": "127.0.0.1:4222", "DATA_DIR": "./data", "DATA_SYNC": "always", "LISTEN": ":8080", "ADMIN_LISTEN": "127.0.0.1:8081",
		"USER_JWT_SECRET": "", "USER_JWKS_URL": "", "USER_JWT_PUBLIC_KEY_FILE": "", "API_KEYS": "",
	}
	ofNode = map[string]string{
		"NATS_URL": "nats://127.0.0.1:4222", "LISTEN": ":8090", "ADMIN_LISTEN": "127.0.0.1:8091", "NODE_ID": "", "NODE_URL": "", "PEER_LISTEN": ":8092", "PEER_URL": "",
		"WEIGHT": "1", "ACCEPT_RATE": "500", "MOVE_DEADLINE": "20s", "DRAIN_TIMEOUT": "60s", "RESTART_GRACE": "0s", "SESSION_LIFETIME": "24h", "MAX_SESSIONS_PER_USER": "16", "DEVICE_POLICY": "replace", "SESSION_POLICY": "oldest",
		"INBOX_PARTITIONS": "0", "INBOX_REPLICAS": "0", "IDEMPOTENCY_WINDOW": "2m",
		"APP": "", "APP_SECRET": "", "APP_TIMEOUT": "10s", "APP_CONCURRENCY": "64", "SEND_RATE": "20", "PRESENCE_GRACE": "10s",
	}
)

func TestUsage(t *testing.T) {
	for name, c := range map[string]struct {
		spec any
		own  map[string]string
	}{"locator": {&locator.Config{}, ofLocator}, "wsnode": {&wsnode.Config{}, ofNode}} {
		var b bytes.Buffer
		config.Usage(&b, "about", c.spec)
		_, table, ok := strings.Cut(b.String(), "NAME")
		if !ok {
			t.Fatalf("%s: no table: %s", name, &b)
		}
		listed := map[string][]string{}
		for _, line := range strings.Split(table, "\n")[1:] {
			if f := strings.Fields(line); len(f) > 0 {
				listed[strings.TrimPrefix(f[0], config.Prefix)] = f[1:]
				if !strings.HasPrefix(f[0], config.Prefix) || len(f) < 4 {
					t.Errorf("%s: a line without a meaning: %s", name, line)
				}
			}
		}
		for _, want := range []map[string]string{both, c.own} {
			for setting, def := range want {
				line, ok := listed[setting]
				if !ok {
					t.Errorf("%s: -h does not list %s", name, setting)
					continue
				}
				if found := strings.Contains(" "+strings.Join(line, " ")+" ", " "+def+" "); def != "" && !found {
					t.Errorf("%s: -h does not say that the default of %s is %s: %q", name, setting, def, line)
				}
				delete(listed, setting)
			}
		}
		for setting := range listed {
			t.Errorf("%s: %s is not in the contract, or not in this test", name, setting)
		}
		if err := config.Defaults(c.spec); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// aLocator and aNode are settings that can be, outside development mode.
func aLocator() locator.Config {
	return locator.Config{NATSURL: "nats://nats.example.com", UserJWTSecret: "0123456789abcdef0123456789abcdef", APIKeys: []string{"k1", " k2 "}, AllowedOrigins: []string{"https://app.example.com"}}
}

func aNode() wsnode.Config {
	return wsnode.Config{NodeID: "ws-1", NodeURL: "wss://ws-1.example.com", PeerURL: "http://10.0.0.1:8092"}
}

func TestLocatorSettings(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*locator.Config)
		want   []string // what the error says; none: it can be
	}{
		"good":          {func(*locator.Config) {}, nil},
		"embedded NATS": {func(c *locator.Config) { c.NATSURL, c.NATSToken, c.DataDir, c.DataSync = "", "t", "./x", "interval" }, nil},
		"development":   {func(c *locator.Config) { *c = locator.Config{Dev: "true"} }, nil},
		"development, any port": {func(c *locator.Config) {
			*c = locator.Config{Dev: "true", Listen: "127.0.0.1:0", NATSListen: "localhost:0"}
		}, nil},
		"no limit":                   {func(c *locator.Config) { c.RatePerAddress = -1 }, nil},
		"DATA_DIR without its NATS":  {func(c *locator.Config) { c.DataDir = "./data" }, []string{"DIALRING_NATS_URL", "DIALRING_DATA_DIR"}},
		"DATA_SYNC without its NATS": {func(c *locator.Config) { c.DataSync = "always" }, []string{"DIALRING_NATS_URL", "DIALRING_DATA_SYNC"}},
		"NATS_LISTEN without its":    {func(c *locator.Config) { c.NATSListen = "127.0.0.1:4222" }, []string{"DIALRING_NATS_URL", "DIALRING_NATS_LISTEN"}},
		"embedded without a token":   {func(c *locator.Config) { c.NATSURL = "" }, []string{"DIALRING_NATS_TOKEN"}},
		"token and creds":            {func(c *locator.Config) { c.NATSToken, c.NATSCreds = "hunter2", "file" }, []string{"DIALRING_NATS_TOKEN", "DIALRING_NATS_CREDS"}},
		"embedded with creds":        {func(c *locator.Config) { c.NATSURL, c.NATSCreds = "", "file" }, []string{"DIALRING_NATS_CREDS"}},
		"two ways, secret and JWKS":  {func(c *locator.Config) { c.UserJWKSURL = "https://x.example.com" }, []string{"DIALRING_USER_JWT_SECRET", "DIALRING_USER_JWKS_URL", "unset"}},
		"two ways, secret and file":  {func(c *locator.Config) { c.UserJWTPublicKeyFile = "key.pem" }, []string{"DIALRING_USER_JWT_PUBLIC_KEY_FILE", "unset"}},
		"two ways in development":    {func(c *locator.Config) { c.Dev, c.UserJWKSURL = "true", "https://x.example.com" }, []string{"DIALRING_USER_JWKS_URL"}},
		"no way":                     {func(c *locator.Config) { c.UserJWTSecret = "" }, []string{"DIALRING_USER_JWT_SECRET", "DIALRING_DEV=true"}},
		"no api key":                 {func(c *locator.Config) { c.APIKeys = nil }, []string{"DIALRING_API_KEYS"}},
		"an empty api key":           {func(c *locator.Config) { c.APIKeys = []string{"hunter2", ""} }, []string{"DIALRING_API_KEYS"}},
		"a blank api key":            {func(c *locator.Config) { c.APIKeys = []string{"hunter2", " "} }, []string{"DIALRING_API_KEYS"}},
		"DEV=yes":                    {func(c *locator.Config) { c.Dev = "yes" }, []string{"DIALRING_DEV", "insecure"}},
		"development for all":        {func(c *locator.Config) { c.Dev, c.Listen = "true", ":8080" }, []string{"DIALRING_LISTEN", "127.0.0.1", "DIALRING_DEV=insecure"}},
		"its admin for all":          {func(c *locator.Config) { c.Dev, c.AdminListen = "true", "0.0.0.0:8081" }, []string{"DIALRING_ADMIN_LISTEN"}},
		"its NATS for all":           {func(c *locator.Config) { *c = locator.Config{Dev: "true", NATSListen: "0.0.0.0:4222"} }, []string{"DIALRING_NATS_LISTEN"}},
		"insecure for all":           {func(c *locator.Config) { c.Dev, c.Listen = "insecure", ":8080" }, nil},
		"a listener without port":    {func(c *locator.Config) { c.Listen = "8080" }, []string{"DIALRING_LISTEN"}},
		"cluster":                    {func(c *locator.Config) { c.Cluster = "a.*" }, []string{"DIALRING_CLUSTER"}},
		"DATA_SYNC":                  {func(c *locator.Config) { c.NATSURL, c.NATSToken, c.DataSync = "", "t", "never" }, []string{"DIALRING_DATA_SYNC", "always"}},
		"messages too big":           {func(c *locator.Config) { c.MaxMessageBytes = 1 << 30 }, []string{"DIALRING_MAX_MESSAGE_BYTES"}},
		"negative messages":          {func(c *locator.Config) { c.MaxMessageBytes = -1 }, []string{"DIALRING_MAX_MESSAGE_BYTES"}},
		"inbox age":                  {func(c *locator.Config) { c.InboxMaxAge = time.Millisecond }, []string{"DIALRING_INBOX_MAX_AGE"}},
		"origin":                     {func(c *locator.Config) { c.AllowedOrigins = []string{"*"} }, []string{"DIALRING_ALLOWED_ORIGINS"}},
	} {
		cfg := aLocator()
		c.change(&cfg)
		l, err := locator.New(cfg)
		judge(t, "locator: "+name, l != nil, err, c.want)
	}
}

func TestNodeSettings(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*wsnode.Config)
		want   []string
	}{
		"good":                    {func(*wsnode.Config) {}, nil},
		"development":             {func(c *wsnode.Config) { *c = wsnode.Config{Dev: "true", NodeID: "ws-1"} }, nil},
		"without an id":           {func(c *wsnode.Config) { c.NodeID = "" }, nil}, // the host's name, made to fit
		"id":                      {func(c *wsnode.Config) { c.NodeID = "WS_1" }, []string{"DIALRING_NODE_ID"}},
		"no NODE_URL":             {func(c *wsnode.Config) { c.NodeURL = "" }, []string{"DIALRING_NODE_URL", "DIALRING_DEV=true"}},
		"no PEER_URL":             {func(c *wsnode.Config) { c.PeerURL = "" }, []string{"DIALRING_PEER_URL", "DIALRING_DEV=true"}},
		"loopback NODE_URL":       {func(c *wsnode.Config) { c.NodeURL = "ws://127.0.0.1:8090" }, []string{"DIALRING_NODE_URL", "other machines"}},
		"loopback PEER_URL":       {func(c *wsnode.Config) { c.PeerURL = "http://localhost:8092" }, []string{"DIALRING_PEER_URL"}},
		"metadata PEER_URL":       {func(c *wsnode.Config) { c.PeerURL = "http://169.254.169.254" }, []string{"DIALRING_PEER_URL"}},
		"loopback in development": {func(c *wsnode.Config) { c.Dev, c.NodeURL = "true", "ws://127.0.0.1:8090" }, nil},
		"http NODE_URL":           {func(c *wsnode.Config) { c.NodeURL = "https://ws-1.example.com" }, []string{"DIALRING_NODE_URL", "ws://"}},
		"ws PEER_URL":             {func(c *wsnode.Config) { c.PeerURL = "ws://10.0.0.1:8092" }, []string{"DIALRING_PEER_URL", "http://"}},
		"development for all":     {func(c *wsnode.Config) { c.Dev, c.Listen = "true", ":8090" }, []string{"DIALRING_LISTEN", "DIALRING_DEV=insecure"}},
		"its peers for all":       {func(c *wsnode.Config) { c.Dev, c.PeerListen = "true", "0.0.0.0:8092" }, []string{"DIALRING_PEER_LISTEN"}},
		"insecure for all":        {func(c *wsnode.Config) { c.Dev, c.Listen = "insecure", ":8090" }, nil},
		"weight":                  {func(c *wsnode.Config) { c.Weight = 1_000_000_000 }, []string{"DIALRING_WEIGHT", "64"}},
		"negative weight":         {func(c *wsnode.Config) { c.Weight = -1 }, []string{"DIALRING_WEIGHT"}},
		"device policy":           {func(c *wsnode.Config) { c.DevicePolicy = "oldest" }, []string{"DIALRING_DEVICE_POLICY", "replace"}},
		"session policy":          {func(c *wsnode.Config) { c.SessionPolicy = "replace" }, []string{"DIALRING_SESSION_POLICY", "oldest"}},
		"a queue for no message":  {func(c *wsnode.Config) { c.MaxMessageBytes, c.SessionQueueBytes = 1<<20, 1<<20 }, []string{"DIALRING_SESSION_QUEUE_BYTES", "DIALRING_MAX_MESSAGE_BYTES"}},
		"drain at once":           {func(c *wsnode.Config) { c.DrainTimeout = time.Millisecond }, []string{"DIALRING_DRAIN_TIMEOUT"}},
		"token and creds":         {func(c *wsnode.Config) { c.NATSToken, c.NATSCreds = "hunter2", "file" }, []string{"DIALRING_NATS_TOKEN"}},
		"cluster":                 {func(c *wsnode.Config) { c.Cluster = "a.b" }, []string{"DIALRING_CLUSTER"}},
		"origin":                  {func(c *wsnode.Config) { c.AllowedOrigins = []string{"https://a.example.com/"} }, []string{"DIALRING_ALLOWED_ORIGINS"}},
	} {
		cfg := aNode()
		c.change(&cfg)
		n, err := wsnode.New(cfg)
		judge(t, "wsnode: "+name, n != nil, err, c.want)
	}
}

func judge(t *testing.T, name string, made bool, err error, want []string) {
	t.Helper()
	if (err == nil) != (want == nil) || made != (err == nil) {
		t.Errorf("%s: %v, want an error that says %q", name, err, want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error does not say %q: %v", name, w, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%s: the error shows a secret: %v", name, err)
	}
}

// New does not change what it was given: a program may make two of one Config.
func TestNewLeavesConfig(t *testing.T) {
	cfg := aLocator()
	if _, err := locator.New(cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.APIKeys[1] != " k2 " {
		t.Errorf("the caller's list of keys became %q", cfg.APIKeys)
	}
}
