package e2e

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// roleEnv makes this test binary run as another program, such as a NATS server of
// its own, so that tests have real ones to kill.
const roleEnv = "DR_E2E_ROLE"

// roles are the programs that this binary can be.
var roles = map[string]func() int{"nats": natsMain, "nats-conf": natsConfMain}

// natsMain: DR_E2E_NATS is "port,dir" or "port,dir,name,clusterPort,route route";
// DR_E2E_NATS_HOST is where it listens, if not on loopback. DR_E2E_NATS_TLS is a directory with
// its certificate and the CA of those that it asks of clients.
func natsMain() int {
	f := strings.Split(os.Getenv("DR_E2E_NATS"), ",")
	port, _ := strconv.Atoi(f[0])
	o := &server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: f[1], NoSigs: true, NoLog: true}
	if h := os.Getenv("DR_E2E_NATS_HOST"); h != "" {
		o.Host = h
	}
	if dir := os.Getenv("DR_E2E_NATS_TLS"); dir != "" {
		c, err := server.GenTLSConfig(&server.TLSConfigOpts{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), CaFile: filepath.Join(dir, "ca.pem"), Verify: true})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		o.TLSConfig, o.TLSTimeout = c, 5
	}
	if len(f) == 5 {
		o.ServerName = f[2]
		cp, _ := strconv.Atoi(f[3])
		o.Cluster = server.ClusterOpts{Name: "e2e", Host: o.Host, Port: cp}
		for _, r := range strings.Fields(f[4]) {
			u, err := url.Parse(r)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			o.Routes = append(o.Routes, u)
		}
	}
	return natsRun(o)
}

// natsRun runs a server until SIGTERM.
func natsRun(o *server.Options) int {
	s, err := server.NewServer(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go s.Start()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
	s.Shutdown()
	s.WaitForShutdown()
	return 0
}

// startNATS starts one NATS server and waits until it takes connections.
func startNATS(t *testing.T, port int, dir string, env ...string) *process {
	t.Helper()
	p := start(t, "nats", os.Args[0], append(env, roleEnv+"=nats", fmt.Sprintf("DR_E2E_NATS=%d,%s", port, dir)))
	waitTCP(t, fmt.Sprintf("127.0.0.1:%d", port))
	return p
}

// natsCluster starts three NATS servers that form one cluster and returns them
// with the URL of all. Each can be started again with the function.
func natsCluster(t *testing.T) (url string, servers []*process, again func(i int) *process) {
	t.Helper()
	var ports, clusterPorts []int
	var urls, routes []string
	for range 3 {
		p, c := freePort(t), freePort(t)
		ports, clusterPorts = append(ports, p), append(clusterPorts, c)
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", p))
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", c))
	}
	dir := t.TempDir()
	again = func(i int) *process {
		return start(t, fmt.Sprintf("nats-%d", i), os.Args[0], []string{roleEnv + "=nats",
			fmt.Sprintf("DR_E2E_NATS=%d,%s/%d,n%d,%d,%s", ports[i], dir, i, i, clusterPorts[i], strings.Join(routes, " "))})
	}
	for i := range 3 {
		servers = append(servers, again(i))
	}
	for _, p := range ports {
		waitTCP(t, fmt.Sprintf("127.0.0.1:%d", p))
	}
	return strings.Join(urls, ","), servers, again
}

const patience = 60 * time.Second // a bound on hangs, not an expectation
