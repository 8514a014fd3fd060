package natsd

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/dialring/dialring/internal/certs"
)

// Routes make a server one of a cluster. Each member has its own store, and each
// message is on as many of them as its stream has replicas.
type Routes struct {
	Cluster string   // the name of the cluster of servers; the same at all
	Listen  string   // host:port, for the others
	Peers   []string // host:port where the others listen; the server's own may be among them
	// Secret is shared by all of them; empty lets everyone in, which the caller allows
	// on loopback in development mode only.
	Secret string
}

// Routes are looked after as connections are in internal/cluster: a half-open one is
// found in 4 to 6 s.
const (
	routePing     = 2 * time.Second
	routePingsOut = 2
)

// routeUser is the name under which servers introduce themselves to each other.
const routeUser = "dialring"

// join sets what makes a server one of a cluster.
func (r *Routes) join(ctx context.Context, o *server.Options, files *certs.Files) error {
	host, port, err := hostPort(r.Listen)
	if err != nil {
		return fmt.Errorf("listen address for the routes of the embedded NATS: %w", err)
	}
	o.Cluster = server.ClusterOpts{Name: r.Cluster, Host: host, Port: port, PingInterval: routePing, MaxPingsOut: routePingsOut,
		NoAdvertise: true} // clients have a list of their own; addresses in here may mean nothing to them
	if files != nil {
		var hosts []string
		for _, p := range r.Peers {
			host, _, _ := net.SplitHostPort(p)
			hosts = append(hosts, host)
		}
		o.Cluster.TLSConfig = files.Both(hosts)
	}
	if r.Secret != "" {
		o.Cluster.Username, o.Cluster.Password = routeUser, r.password()
	}
	for _, p := range others(ctx, r.Peers, r.Listen) {
		u := &url.URL{Scheme: "nats", Host: p}
		if r.Secret != "" {
			u.User = url.UserPassword(routeUser, r.password())
		}
		o.Routes = append(o.Routes, u)
	}
	return nil
}

// lookupTimeout bounds the look for the own address among the routes.
const lookupTimeout = 2 * time.Second

// others are the routes but the server's own, as far as that can be told: its port, at
// a host that is an address of this machine. NATS takes the number of routes for the
// number of servers that have to be there before a new cluster begins: three that have
// all of them in the list would begin with three only, and not with two.
func others(ctx context.Context, routes []string, listen string) []string {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	_, own, _ := net.SplitHostPort(listen)
	local := map[string]bool{}
	addrs, _ := net.InterfaceAddrs() // without them none is own
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			local[n.IP.String()] = true
		}
	}
	var out []string
	for _, r := range routes {
		host, port, _ := net.SplitHostPort(r)
		mine := false
		if port == own {
			ips, _ := net.DefaultResolver.LookupIPAddr(ctx, host) // unknown: it is another's
			mine = slices.ContainsFunc(ips, func(ip net.IPAddr) bool { return local[ip.IP.String()] })
		}
		if !mine {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return routes // nobody's: NATS wants one
	}
	return out
}

// password is what goes over the wire: of this cluster only, and without what NATS
// would take for a bcrypt hash.
func (r *Routes) password() string {
	h := hmac.New(sha256.New, []byte(r.Secret))
	h.Write([]byte("dialring NATS routes of " + r.Cluster))
	return hex.EncodeToString(h.Sum(nil))
}

func hostPort(addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	p, err := strconv.Atoi(port)
	if p == 0 {
		p = server.RANDOM_PORT
	}
	return host, p, err
}
