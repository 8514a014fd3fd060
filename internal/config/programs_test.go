package config_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/trust"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// The settings of the contract (section 6), with their defaults.
var (
	both = map[string]string{
		"CLUSTER": "dialring", "SESSION_QUEUE_BYTES": "1048576", "MAX_MESSAGE_BYTES": "65536", "INBOX_MAX_MESSAGES": "1000", "INBOX_MAX_AGE": "72h",
		"RATE_PER_ADDRESS": "50", "TRUSTED_PROXIES": "", "ALLOWED_ORIGINS": "", "DEV": "false", "LOG_LEVEL": "info", "LOG_FORMAT": "text", "OTLP_ENDPOINT": "", "TLS_CERT_FILE": "", "TLS_KEY_FILE": "", "PEER_TLS_CERT_FILE": "", "PEER_TLS_KEY_FILE": "", "PEER_TLS_CA_FILE": "",
		"NATS_TLS_CA_FILE": "", "NATS_TLS_CERT_FILE": "", "NATS_TLS_KEY_FILE": "", "NATS_TOKEN": "", "NATS_CREDS": "", "ADMIN_KEY": "", "RESERVED_FILES": "200", "NATS_PENDING_BYTES": "67108864",
	}
	ofLocator = map[string]string{
		"NATS_URL": "", "NATS_LISTEN": "127.0.0.1:4222", "DATA_DIR": "./data", "DATA_SYNC": "always",
		"NATS_ROUTES": "", "NATS_ROUTE_LISTEN": ":6222", "NATS_ROUTE_SECRET": "", "NATS_NAME": "", "LISTEN": ":8080", "ADMIN_LISTEN": "127.0.0.1:8081",
		"USER_JWT_SECRET": "", "USER_JWKS_URL": "", "USER_JWT_PUBLIC_KEY_FILE": "", "API_KEYS": "", "API_KEYS_FILE": "", "USER_JWT_SECRET_PREVIOUS": "", "USER_JWT_AUDIENCE": "", "USER_JWT_ISSUER": "", "TRACE_RATIO": "", "EDGE": "false", "CLUSTER_KEY": "", "RATE_PER_USER": "10", "CALLS_PER_KEY": "1000", "MAX_CONNECTIONS": "10000", "MAX_BATCH": "10000", "MAX_BODY_BYTES": "33554432", "CALL_BYTES": "268435456",
	}
	ofNode = map[string]string{
		"NATS_URL": "nats://127.0.0.1:4222", "LISTEN": ":8090", "ADMIN_LISTEN": "127.0.0.1:8091", "NODE_ID": "", "NODE_URL": "", "PEER_LISTEN": ":8092", "PEER_URL": "",
		"WEIGHT": "1", "ACCEPT_RATE": "500", "MOVE_DEADLINE": "20s", "DRAIN_TIMEOUT": "60s", "RESTART_GRACE": "0s", "SESSION_LIFETIME": "24h", "MAX_SESSIONS_PER_USER": "16", "DEVICE_POLICY": "replace", "SESSION_POLICY": "oldest",
		"INBOX_PARTITIONS": "0", "INBOX_REPLICAS": "0", "INBOX_KEYS_FILE": "", "IDEMPOTENCY_WINDOW": "2m",
		"APP": "", "APP_SECRET": "", "APP_TIMEOUT": "10s", "APP_CONCURRENCY": "64", "SEND_RATE": "20", "SEND_QUEUE_BYTES": "67108864",
		"MAX_SESSIONS": "0", "MAX_HANDSHAKES": "2048", "RATE_PER_USER": "10", "FRAME_RATE": "0", "BYTE_RATE": "0", "NODE_QUEUE_BYTES": "0", "MEMORY_LIMIT": "0", "PRESENCE_GRACE": "10s", "NODE_KEY": "",
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

// What the command line has one set does not stop a program in the same shell or pod.
func TestLoadLeavesTheCommandLine(t *testing.T) {
	if full, ok := os.LookupEnv("DIALRING_FULL"); ok { // of CI, and no setting either
		os.Unsetenv("DIALRING_FULL")
		defer os.Setenv("DIALRING_FULL", full)
	}
	for _, name := range []string{"LOCATOR", "API_KEY", "TOKEN"} {
		t.Setenv("DIALRING_CLI_"+name, "x")
	}
	for name, spec := range map[string]any{"locator": &locator.Config{}, "wsnode": &wsnode.Config{}} {
		if err := config.Load(spec); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv("DIALRING_CLI", "x")
	if err := config.Load(&locator.Config{}); err == nil {
		t.Error("DIALRING_CLI is taken for one of the command line")
	}
}

// aLocator and aNode are settings that can be, outside development mode.
func aLocator() locator.Config {
	return locator.Config{NATSURL: "nats://nats.example.com", UserJWTSecret: "0123456789abcdef0123456789abcdef", APIKeys: []string{"k1", " k2 "}, AllowedOrigins: []string{"https://app.example.com"}}
}

func aNode() wsnode.Config {
	return wsnode.Config{NodeID: "ws-1", NodeURL: "wss://ws-1.example.com", PeerURL: "http://10.0.0.1:8092"}
}

// routes makes it one of three whose NATS is embedded.
func routes(c *locator.Config) {
	c.NATSURL, c.NATSToken, c.NATSName = "", "t", "locator-1"
	c.NATSRoutes, c.NATSRouteSecret = []string{"a:6222", " b:6222", "c.example.com:6222"}, "0123456789abcdef"
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
		"a cluster key":              {func(c *locator.Config) { c.ClusterKey = locator.Secret(trust.NewClusterKey()) }, nil},
		"no cluster key":             {func(c *locator.Config) { c.ClusterKey = "hunter2" }, []string{"DIALRING_CLUSTER_KEY", "dialring cluster-key"}},
		"an admin key":               {func(c *locator.Config) { c.AdminKey = "0123456789abcdef" }, nil},
		"a short admin key":          {func(c *locator.Config) { c.AdminKey = "hunter2" }, []string{"DIALRING_ADMIN_KEY", "16"}},
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
		"no api key":                 {func(c *locator.Config) { c.APIKeys = nil }, []string{"DIALRING_API_KEYS or DIALRING_API_KEYS_FILE"}},
		"a file of api keys only":    {func(c *locator.Config) { c.APIKeys, c.APIKeysFile = nil, "keys.json" }, nil},
		"a previous secret":          {func(c *locator.Config) { c.UserJWTSecretPrevious = config.Secret(strings.Repeat("p", 32)) }, nil},
		"a previous secret only": {func(c *locator.Config) {
			c.UserJWTSecret, c.UserJWTSecretPrevious, c.UserJWKSURL = "", config.Secret(strings.Repeat("p", 32)), "https://x.example.com"
		}, []string{"DIALRING_USER_JWT_SECRET_PREVIOUS", "DIALRING_USER_JWT_SECRET is not"}},
		"an issuer": {func(c *locator.Config) { c.UserJWTAudience, c.UserJWTIssuer = "push", "https://login.example.com/" }, nil},
		"an issuer in development": {func(c *locator.Config) { *c = locator.Config{Dev: "true", UserJWTIssuer: "x"} },
			[]string{"DIALRING_USER_JWT_ISSUER", "DIALRING_USER_JWKS_URL", "unset"}},
		"an audience in development": {func(c *locator.Config) { *c = locator.Config{Dev: "true", UserJWTAudience: "x"} },
			[]string{"DIALRING_USER_JWT_AUDIENCE", "DIALRING_USER_JWKS_URL", "unset"}},
		"the same secret twice":     {func(c *locator.Config) { c.UserJWTSecretPrevious = c.UserJWTSecret }, []string{"DIALRING_USER_JWT_SECRET_PREVIOUS", "unset"}},
		"an empty api key":          {func(c *locator.Config) { c.APIKeys = []string{"hunter2", ""} }, []string{"DIALRING_API_KEYS"}},
		"a blank api key":           {func(c *locator.Config) { c.APIKeys = []string{"hunter2", " "} }, []string{"DIALRING_API_KEYS"}},
		"DEV=yes":                   {func(c *locator.Config) { c.Dev = "yes" }, []string{"DIALRING_DEV", "insecure"}},
		"development for all":       {func(c *locator.Config) { c.Dev, c.Listen = "true", ":8080" }, []string{"DIALRING_LISTEN", "127.0.0.1", "DIALRING_DEV=insecure"}},
		"its admin for all":         {func(c *locator.Config) { c.Dev, c.AdminListen = "true", "0.0.0.0:8081" }, []string{"DIALRING_ADMIN_LISTEN"}},
		"its NATS for all":          {func(c *locator.Config) { *c = locator.Config{Dev: "true", NATSListen: "0.0.0.0:4222"} }, []string{"DIALRING_NATS_LISTEN"}},
		"insecure for all":          {func(c *locator.Config) { c.Dev, c.Listen = "insecure", ":8080" }, nil},
		"routes":                    {routes, nil},
		"routes, alone in the list": {func(c *locator.Config) { routes(c); c.NATSRoutes = []string{" a:6222 "} }, nil},
		"routes with another NATS": {func(c *locator.Config) { routes(c); c.NATSURL, c.NATSToken = "nats://n", "" },
			[]string{"DIALRING_NATS_URL", "DIALRING_NATS_ROUTES"}},
		"routes without a secret":    {func(c *locator.Config) { routes(c); c.NATSRouteSecret = "" }, []string{"DIALRING_NATS_ROUTE_SECRET", "16"}},
		"routes with a short secret": {func(c *locator.Config) { routes(c); c.NATSRouteSecret = "hunter2" }, []string{"DIALRING_NATS_ROUTE_SECRET", "16"}},
		"routes without a port":      {func(c *locator.Config) { routes(c); c.NATSRoutes = []string{"a"} }, []string{"DIALRING_NATS_ROUTES", "host:port"}},
		"routes without a host":      {func(c *locator.Config) { routes(c); c.NATSRoutes = []string{":6222"} }, []string{"DIALRING_NATS_ROUTES", "host:port"}},
		"routes, an empty one":       {func(c *locator.Config) { routes(c); c.NATSRoutes = append(c.NATSRoutes, "") }, []string{"DIALRING_NATS_ROUTES", "host:port"}},
		"routes as URLs":             {func(c *locator.Config) { routes(c); c.NATSRoutes = []string{"nats://r:hunter2@a:6222"} }, []string{"DIALRING_NATS_ROUTES", "host:port"}},
		"NATS as no URL":             {func(c *locator.Config) { c.NATSURL = "nats://l:hunter2@:a b" }, []string{"DIALRING_NATS_URL", "nats://host:4222"}},
		"a JWK set with a password": {func(c *locator.Config) { c.UserJWTSecret, c.UserJWKSURL = "", "https://u:hunter2@x.example.com" },
			[]string{"DIALRING_USER_JWKS_URL", "password"}},
		"traces with a password":   {func(c *locator.Config) { c.OTLPEndpoint = "https://u:hunter2@x.example.com" }, []string{"DIALRING_OTLP_ENDPOINT", "password"}},
		"a name with blanks":       {func(c *locator.Config) { routes(c); c.NATSName = "a b" }, []string{"DIALRING_NATS_NAME"}},
		"a name without routes":    {func(c *locator.Config) { routes(c); c.NATSRoutes, c.NATSRouteSecret = nil, "" }, []string{"DIALRING_NATS_NAME", "DIALRING_NATS_ROUTES"}},
		"a route secret without":   {func(c *locator.Config) { c.NATSRouteSecret = "0123456789abcdef" }, []string{"DIALRING_NATS_ROUTE_SECRET", "DIALRING_NATS_ROUTES"}},
		"a route listener without": {func(c *locator.Config) { c.NATSRouteListen = ":6222" }, []string{"DIALRING_NATS_ROUTE_LISTEN", "DIALRING_NATS_ROUTES"}},
		"routes in development":    {func(c *locator.Config) { *c = locator.Config{Dev: "true", NATSRoutes: []string{"127.0.0.1:6222"}} }, nil},
		"routes in development, short": {func(c *locator.Config) {
			*c = locator.Config{Dev: "true", NATSRoutes: []string{"127.0.0.1:6222"}, NATSRouteSecret: "hunter2"}
		}, []string{"DIALRING_NATS_ROUTE_SECRET"}},
		"routes in development for all": {func(c *locator.Config) {
			*c = locator.Config{Dev: "true", NATSRoutes: []string{"127.0.0.1:6222"}, NATSRouteListen: ":6222"}
		}, []string{"DIALRING_NATS_ROUTE_LISTEN", "DIALRING_DEV=insecure"}},
		"a listener without port": {func(c *locator.Config) { c.Listen = "8080" }, []string{"DIALRING_LISTEN"}},
		"cluster":                 {func(c *locator.Config) { c.Cluster = "a.*" }, []string{"DIALRING_CLUSTER"}},
		"DATA_SYNC":               {func(c *locator.Config) { c.NATSURL, c.NATSToken, c.DataSync = "", "t", "never" }, []string{"DIALRING_DATA_SYNC", "always"}},
		"messages too big":        {func(c *locator.Config) { c.MaxMessageBytes = 1 << 30 }, []string{"DIALRING_MAX_MESSAGE_BYTES"}},
		"negative messages":       {func(c *locator.Config) { c.MaxMessageBytes = -1 }, []string{"DIALRING_MAX_MESSAGE_BYTES"}},
		"inbox age":               {func(c *locator.Config) { c.InboxMaxAge = time.Millisecond }, []string{"DIALRING_INBOX_MAX_AGE"}},
		"origin":                  {func(c *locator.Config) { c.AllowedOrigins = []string{"*"} }, []string{"DIALRING_ALLOWED_ORIGINS"}},
		"proxies":                 {func(c *locator.Config) { c.TrustedProxies = []string{"10.0.0.0/8", " fd00::1", "192.0.2.1"} }, nil},
		"no limits":               {func(c *locator.Config) { c.RatePerAddress, c.RatePerUser, c.CallsPerKey = -1, -1, -1 }, nil},
		"no connections":          {func(c *locator.Config) { c.MaxConnections = -1 }, []string{"DIALRING_MAX_CONNECTIONS"}},
		"batches beyond the SDKs": {func(c *locator.Config) { c.MaxBatch = 10_001 }, []string{"DIALRING_MAX_BATCH", "10000"}},
		"bodies beyond 32 MiB":    {func(c *locator.Config) { c.MaxBodyBytes = 32<<20 + 1 }, []string{"DIALRING_MAX_BODY_BYTES"}},
		"few bytes of calls":      {func(c *locator.Config) { c.CallBytes = 127 << 20 }, []string{"DIALRING_CALL_BYTES", "134217728", "DIALRING_MAX_BODY_BYTES"}},
		"few of less":             {func(c *locator.Config) { c.CallBytes, c.MaxBodyBytes = 1<<20, 64<<10 }, nil},
		"NATS without room":       {func(c *locator.Config) { c.NATSPendingBytes = 1 << 20 }, []string{"DIALRING_NATS_PENDING_BYTES"}},
		"no file in reserve":      {func(c *locator.Config) { c.ReservedFiles = 1 }, []string{"DIALRING_RESERVED_FILES", "20"}},
		"a proxy's name":          {func(c *locator.Config) { c.TrustedProxies = []string{"proxy.internal"} }, []string{"DIALRING_TRUSTED_PROXIES", "proxy.internal"}},
		"a proxy's address and /": {func(c *locator.Config) { c.TrustedProxies = []string{"10.0.0.7/8"} }, []string{"DIALRING_TRUSTED_PROXIES", "10.0.0.0/8"}},
		"everybody a proxy":       {func(c *locator.Config) { c.TrustedProxies = []string{"0.0.0.0/0"} }, []string{"DIALRING_TRUSTED_PROXIES", "everybody"}},
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
		"a node key":              {func(c *wsnode.Config) { c.NodeKey = nodeKeyFor("dialring", "*") }, nil},
		"no node key":             {func(c *wsnode.Config) { c.NodeKey = "hunter2" }, []string{"DIALRING_NODE_KEY", "dialring node-key"}},
		"another node's key":      {func(c *wsnode.Config) { c.NodeKey = nodeKeyFor("dialring", "other") }, []string{"DIALRING_NODE_KEY", "other"}},
		"another cluster's key":   {func(c *wsnode.Config) { c.NodeKey = nodeKeyFor("elsewhere", "*") }, []string{"DIALRING_NODE_KEY", "elsewhere"}},
		"a short admin key":       {func(c *wsnode.Config) { c.AdminKey = "hunter2" }, []string{"DIALRING_ADMIN_KEY", "16"}},
		"NATS without room":       {func(c *wsnode.Config) { c.NATSPendingBytes = 1 << 20 }, []string{"DIALRING_NATS_PENDING_BYTES"}},
		"no file in reserve":      {func(c *wsnode.Config) { c.ReservedFiles = 1 }, []string{"DIALRING_RESERVED_FILES", "20"}},
		"without an id":           {func(c *wsnode.Config) { c.NodeID = "" }, nil}, // the host's name, made to fit
		"id":                      {func(c *wsnode.Config) { c.NodeID = "WS_1" }, []string{"DIALRING_NODE_ID"}},
		"no NODE_URL":             {func(c *wsnode.Config) { c.NodeURL = "" }, []string{"DIALRING_NODE_URL", "DIALRING_DEV=true"}},
		"no PEER_URL":             {func(c *wsnode.Config) { c.PeerURL = "" }, []string{"DIALRING_PEER_URL", "DIALRING_DEV=true"}},
		"loopback NODE_URL":       {func(c *wsnode.Config) { c.NodeURL = "ws://127.0.0.1:8090" }, []string{"DIALRING_NODE_URL", "other machines"}},
		"loopback PEER_URL":       {func(c *wsnode.Config) { c.PeerURL = "http://localhost:8092" }, []string{"DIALRING_PEER_URL"}},
		"metadata PEER_URL":       {func(c *wsnode.Config) { c.PeerURL = "http://169.254.169.254" }, []string{"DIALRING_PEER_URL"}},
		"loopback in development": {func(c *wsnode.Config) { c.Dev, c.NodeURL = "true", "ws://127.0.0.1:8090" }, nil},
		"NODE_URL with password":  {func(c *wsnode.Config) { c.NodeURL = "wss://u:hunter2@ws-1.example.com" }, []string{"DIALRING_NODE_URL"}},
		"PEER_URL with password":  {func(c *wsnode.Config) { c.PeerURL = "http://u:hunter2@ws-1.example.com" }, []string{"DIALRING_PEER_URL"}},
		"NATS as no URL":          {func(c *wsnode.Config) { c.NATSURL = "http://n:hunter2@nats" }, []string{"DIALRING_NATS_URL"}},
		"APP with a password":     {func(c *wsnode.Config) { c.App = "https://u:hunter2@app.example.com" }, []string{"DIALRING_APP", "password"}},
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
		"no limits":               {func(c *wsnode.Config) { c.MemoryLimit, c.RatePerUser, c.RatePerAddress = -1, -1, -1 }, nil},
		"memory for nothing":      {func(c *wsnode.Config) { c.MemoryLimit = 512 }, []string{"DIALRING_MEMORY_LIMIT", "bytes"}},
		"queues for one":          {func(c *wsnode.Config) { c.NodeQueueBytes = 1 << 19 }, []string{"DIALRING_NODE_QUEUE_BYTES", "DIALRING_SESSION_QUEUE_BYTES"}},
		"sends for none":          {func(c *wsnode.Config) { c.SendQueueBytes = 1 << 16 }, []string{"DIALRING_SEND_QUEUE_BYTES", "DIALRING_MAX_MESSAGE_BYTES"}},
		"negative sessions":       {func(c *wsnode.Config) { c.MaxSessions = -1 }, []string{"DIALRING_MAX_SESSIONS"}},
		"no handshakes":           {func(c *wsnode.Config) { c.MaxHandshakes = -5 }, []string{"DIALRING_MAX_HANDSHAKES"}},
		"negative frames":         {func(c *wsnode.Config) { c.FrameRate = -1 }, []string{"DIALRING_FRAME_RATE"}},
		"negative bytes":          {func(c *wsnode.Config) { c.ByteRate = -1 }, []string{"DIALRING_BYTE_RATE"}},
		"drain at once":           {func(c *wsnode.Config) { c.DrainTimeout = time.Millisecond }, []string{"DIALRING_DRAIN_TIMEOUT"}},
		"token and creds":         {func(c *wsnode.Config) { c.NATSToken, c.NATSCreds = "hunter2", "file" }, []string{"DIALRING_NATS_TOKEN"}},
		"cluster":                 {func(c *wsnode.Config) { c.Cluster = "a.b" }, []string{"DIALRING_CLUSTER"}},
		"a proxy's name":          {func(c *wsnode.Config) { c.TrustedProxies = []string{"proxy.internal"} }, []string{"DIALRING_TRUSTED_PROXIES", "proxy.internal"}},
		"origin":                  {func(c *wsnode.Config) { c.AllowedOrigins = []string{"https://a.example.com/"} }, []string{"DIALRING_ALLOWED_ORIGINS"}},
	} {
		cfg := aNode()
		c.change(&cfg)
		n, err := wsnode.New(cfg)
		judge(t, "wsnode: "+name, n != nil, err, c.want)
	}
}

func nodeKeyFor(cluster, nodes string) wsnode.Secret {
	a, err := trust.ParseAuthority(cluster, trust.NewClusterKey())
	if err != nil {
		panic(err)
	}
	key, err := a.NewNodeKey(nodes)
	if err != nil {
		panic(err)
	}
	return wsnode.Secret(key)
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

// Every secret of both programs can come from a file, and -h says so; API keys are no secret of
// this kind, and show neither in errors nor there.
func TestSecretsFromFiles(t *testing.T) {
	t.Setenv("DIALRING_FULL", "") // of the tests, not of the programs
	os.Unsetenv("DIALRING_FULL")
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spec    any
		secrets string
	}{
		"locator": {&locator.Config{}, "ADMIN_KEY CLUSTER_KEY NATS_ROUTE_SECRET NATS_TOKEN NATS_URL USER_JWT_SECRET USER_JWT_SECRET_PREVIOUS"},
		"wsnode":  {&wsnode.Config{}, "ADMIN_KEY APP_SECRET NATS_TOKEN NATS_URL NODE_KEY"},
	} {
		var usage bytes.Buffer
		t.Setenv("DIALRING_API_KEYS", "hunter2")
		config.Usage(&usage, "about", c.spec)
		if strings.Contains(usage.String(), "hunter2") {
			t.Errorf("%s: -h shows an API key", name)
		}
		os.Unsetenv("DIALRING_API_KEYS")
		var in []string
		for line := range strings.Lines(usage.String()) {
			if f := strings.Fields(line); strings.Contains(line, "(or a file)") {
				in = append(in, strings.TrimPrefix(f[0], config.Prefix))
				t.Setenv(f[0]+"_FILE", file)
			}
		}
		slices.Sort(in)
		if got := strings.Join(in, " "); got != c.secrets {
			t.Errorf("%s: of files are %s, want %s", name, got, c.secrets)
		}
		if err := config.Load(c.spec); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		v := reflect.ValueOf(c.spec).Elem()
		for i := range v.NumField() {
			if s := v.Type().Field(i).Tag.Get("env"); slices.Contains(in, s) && v.Field(i).String() != "hunter2" {
				t.Errorf("%s: %s was not read", name, s)
			}
		}
		for _, s := range in {
			os.Unsetenv(config.Prefix + s + "_FILE")
		}
	}
}
