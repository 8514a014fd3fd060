package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// processes does what inprocStart does with programs, each a process of its own, outside
// development mode. Who asks is not limited unless a setting says so.
func processes(t *testing.T, lc locator.Config, nodes ...wsnode.Config) *inprocCluster {
	t.Helper()
	c := &inprocCluster{t: t, key: "key", auth: true, log: newInprocLog(), issued: &inprocTickets{}}
	t.Cleanup(c.checkLog) // last of all
	if lc.APIKeys == nil {
		lc.APIKeys = []string{c.key}
	}
	c.key = lc.APIKeys[0]
	l := startProcess(t, c.log, lc)
	c.at = locator.Addrs{Listen: l.addr, Admin: l.admin, NATS: l.nats}
	for i, nc := range nodes {
		if nc.NodeID == "" {
			nc.NodeID = fmt.Sprintf("ws-%d", i+1)
		}
		host := ownAddress(t)
		listen, peer := freeAddress(t, host), freeAddress(t, host)
		if nc.RatePerAddress == 0 {
			nc.RatePerAddress = -1
		}
		if nc.RatePerUser == 0 {
			nc.RatePerUser = -1
		}
		env := append([]string{"DIALRING_LOG_LEVEL=debug"}, normalNodeEnv(c.at.NATS, listen, peer)...)
		n := startNodeTapped(t, c.log.line, nc.NodeID, c.at.NATS, listen, peer, append(env, environment(nc)...)...)
		x := &inprocNode{id: nc.NodeID, at: wsnode.Addrs{Listen: n.addr, Peer: n.peer, Admin: n.admin}, done: n.done}
		x.stop = context.CancelFunc(func() { _ = n.cmd.Process.Signal(syscall.SIGTERM) })
		c.nodes = append(c.nodes, x)
	}
	c.await(len(nodes))
	return c
}

// startProcess starts a locator of its own outside development mode.
func startProcess(t *testing.T, log *inprocLog, lc locator.Config) *locatorProc {
	t.Helper()
	if lc.RatePerAddress == 0 {
		lc.RatePerAddress = -1
	}
	if lc.RatePerUser == 0 {
		lc.RatePerUser = -1
	}
	if lc.UserJWTSecret == "" && lc.UserJWKSURL == "" && lc.UserJWTPublicKeyFile == "" {
		lc.UserJWTSecret = inprocSecret
	}
	return startLocatorTapped(t, log.line, append([]string{"DIALRING_DEV=false", "DIALRING_LOG_LEVEL=debug", "DIALRING_NATS_TOKEN=" + normalNATSToken, "DIALRING_DATA_SYNC=interval"}, environment(lc)...)...)
}

// environment is what a program has to be told to have these settings.
func environment(config any) (env []string) {
	v := reflect.ValueOf(config)
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("env")
		f := v.Field(i)
		if name == "" || f.IsZero() {
			continue
		}
		value := ""
		switch f.Kind() {
		case reflect.String: // also a secret, which shows itself to nobody who formats it
			value = f.String()
		case reflect.Slice:
			value = strings.Join(f.Interface().([]string), ",")
		default:
			value = fmt.Sprint(f.Interface())
		}
		env = append(env, "DIALRING_"+name+"="+value)
	}
	return env
}

// line takes a line of a process's log, which is JSON, and writes it as the text that tests
// look into. What is no such line is kept as it is.
func (l *inprocLog) line(b []byte) {
	d := json.NewDecoder(bytes.NewReader(b))
	var r slog.Record
	var level slog.Level
	var at time.Time
	var msg string
	var attrs []slog.Attr
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		_, _ = l.Write(append(bytes.Clone(b), '\n'))
		return
	}
	for d.More() {
		k, err := d.Token()
		if err != nil {
			break
		}
		var v any
		if err := d.Decode(&v); err != nil {
			break
		}
		switch k {
		case "time":
			at, _ = time.Parse(time.RFC3339Nano, fmt.Sprint(v))
		case "level":
			_ = level.UnmarshalText([]byte(fmt.Sprint(v)))
		case "msg":
			msg = fmt.Sprint(v)
		default:
			attrs = append(attrs, slog.Any(fmt.Sprint(k), v))
		}
	}
	r = slog.NewRecord(at, level, msg, 0)
	r.AddAttrs(attrs...)
	_ = l.logger().Handler().Handle(context.Background(), r)
}

// allocated is how many bytes the node has allocated since it began.
func (c *inprocCluster) allocated() float64 {
	c.t.Helper()
	return scrapeValue(c.t, c.nodes[0].at.Admin, "go_memstats_alloc_bytes_total")
}

func (c *inprocCluster) natsToken() string {
	if c.auth {
		return normalNATSToken
	}
	return ""
}
