package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Whom deploy/nats/accounts.conf lets in, and with what.
var natsPasswords = map[string]string{"node": "pnode1", "locator": "plocator1", "application": "papp1", "operator": "poperator1", "system": "psystem1", "route": "proute1"}

// natsConfMain is nats-server with a file of deploy/nats. What tests must change is
// what one can give to nats-server as arguments, too: DR_E2E_NATS is
// "file,port,dir" or "file,port,dir,clusterPort".
func natsConfMain() int {
	f := strings.Split(os.Getenv("DR_E2E_NATS"), ",")
	o, err := server.ProcessConfigFile(f[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o.Host, o.HTTPPort, o.StoreDir, o.NoSigs, o.NoLog = "127.0.0.1", 0, f[2], true, true
	o.Port, _ = strconv.Atoi(f[1])
	if len(f) == 4 {
		o.Cluster.Host = "127.0.0.1"
		o.Cluster.Port, _ = strconv.Atoi(f[3])
	}
	return natsRun(o)
}

func natsConfEnv(name string) []string {
	env := []string{roleEnv + "=nats-conf", "DIALRING_NATS_SERVER=" + name}
	for user, password := range natsPasswords {
		env = append(env, "DIALRING_NATS_"+strings.ToUpper(user)+"_PASSWORD="+password)
	}
	return env
}

func natsConf(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "deploy", "nats", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startNATSConf starts one server by deploy/nats/nats.conf and returns its address.
func startNATSConf(t *testing.T) string {
	t.Helper()
	port := quietPort(t)
	start(t, "nats", os.Args[0], append(natsConfEnv("nats-1"), fmt.Sprintf("DR_E2E_NATS=%s,%d,%s", natsConf(t, "nats.conf"), port, t.TempDir())))
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	waitTCP(t, addr)
	return addr
}

func natsURLOf(user string, addrs ...string) string {
	var all []string
	for _, a := range addrs {
		all = append(all, "nats://"+user+":"+natsPasswords[user]+"@"+a)
	}
	return strings.Join(all, ",")
}

// natsAs connects as a user. More inboxes than its own it has not.
func natsAs(t *testing.T, user, addr string) *nats.Conn {
	t.Helper()
	inbox := map[string]string{"node": "_INBOX.dialring.node.test", "locator": "_INBOX.dialring.locator.test", "application": "_INBOX.application.test"}[user]
	o := []nats.Option{nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), nats.Timeout(patience)}
	if inbox != "" {
		o = append(o, nats.CustomInboxPrefix(inbox))
	}
	nc, err := nats.Connect(natsURLOf(user, addr), o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// natsDenies tells what the server says of a publish, or a subscription; "" if it lets it pass.
func natsDenies(t *testing.T, user, addr string, do func(nc *nats.Conn) error) string {
	t.Helper()
	nc := natsAs(t, user, addr)
	defer nc.Close()
	if err := do(nc); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(patience); err != nil { // its answer comes behind any error
		t.Fatal(err)
	}
	if err := nc.LastError(); err != nil {
		return err.Error()
	}
	return ""
}

// unpermitted fails if a program was denied anything by NATS.
func unpermitted(t *testing.T, p *process) {
	t.Helper()
	for line := range strings.Lines(p.text()) {
		if strings.Contains(strings.ToLower(line), "permission") {
			t.Errorf("%s: %s", p.name, line)
		}
	}
}

// All that a cluster does, by users who may do nothing else: locate, store, move, drain,
// groups, presence, revocations, and sends to the application.
func natsWork(t *testing.T, addrs []string, env ...string) {
	t.Helper()
	nodeURL := natsURLOf("node", addrs...)
	// The first node makes the streams, and without a locator: it is to need nothing of it.
	first := startNode(t, "ws-1", nodeURL, append(env, "DIALRING_APP=nats")...)
	l := startLocator(t, "DIALRING_NATS_URL="+natsURLOf("locator", addrs...))
	other := startLocator(t, "DIALRING_NATS_URL="+natsURLOf("locator", addrs...))
	two, three := startNode(t, "ws-2", nodeURL, append(env, "DIALRING_APP=jetstream")...), startNode(t, "ws-3", nodeURL, append(env, "DIALRING_APP=nats")...)
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	eventually(t, "messages are stored", func() bool { status, _ := l.tryStore("probe", "1"); return status == 200 })

	app := natsAs(t, "application", addrs[0])
	events := make(chan string, 1024)
	if _, err := app.Subscribe("dialring.presence", func(m *nats.Msg) { events <- string(m.Data) }); err != nil {
		t.Fatal(err)
	}
	if _, err := app.QueueSubscribe("dialring.app", "application", func(m *nats.Msg) { _ = m.Respond([]byte(`{"price":3}`)) }); err != nil {
		t.Fatal(err)
	}
	if err := app.Flush(); err != nil {
		t.Fatal(err)
	}
	alice := listen(t, userOf(t, l, "ws-1"), l, other)
	if e := await(t, "presence is told", events); !strings.Contains(e, `"online"`) {
		t.Errorf("presence event: %s", e)
	}
	for node, want := range map[string]string{"ws-3": `{"price":3}`, "ws-2": `{"seq":1}`} {
		b := dialBare(t, l, userOf(t, l, node))
		if _, err := b.Write(inprocFrame(0x81, []byte(`{"type":"send","ref":"r","data":{"price_of":"tea"}}`))); err != nil {
			t.Fatal(err)
		}
		var ack struct{ Data json.RawMessage }
		b.expectType(t, "ack", &ack)
		if string(ack.Data) != want {
			t.Errorf("the application answers a client at %s %s, want %s", node, ack.Data, want)
		}
		b.Close()
	}
	if status, b := call(t, "PUT", "http://"+other.addr+"/v1/groups/g/members/"+alice.user, ""); status != 204 {
		t.Errorf("a group: %d %s", status, b)
	}
	// Streams with three copies are made for seconds, and that of probe's user is not
	// alice's: until hers is there the answer names her as failed, and a service asks again.
	eventually(t, "the push to the group is stored", func() bool {
		p := other.post("/v1/push?group=g", "application/json", `"to the group"`, "to-the-group")
		return p.status == 200 && bytes.Contains(p.body, []byte(`"stored":1`))
	})
	alice.expect(t, `"to the group"`)

	load := startLoad(t, loadConfig{Locators: []*locatorProc{l, other}, Users: 20, Devices: 2, Rate: 50, Durable: true})
	load.pushed(t, 100)
	if code := two.term(t); code != 0 {
		t.Errorf("ws-2 ended with %d", code)
	}
	l.waitMembers(t, "ws-1", "ws-3")
	load.pushed(t, 50)
	again := startNode(t, "ws-2", nodeURL, append(env, "DIALRING_INBOX_MAX_MESSAGES=900")...) // changes the limits of all streams
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	load.pushed(t, 50)
	load.arrived(t)
	// Development mode has no tokens that could be refused; it is stored, and told, all the same.
	if closed := l.kick(t, load.users[0], "?revoke=true"); closed != 0 {
		t.Errorf("%d sessions of a user without any were closed", closed)
	}
	for _, p := range []*process{first.process, two.process, three.process, again.process, l.process, other.process} {
		unpermitted(t, p)
	}
}

func TestNATSPermissions(t *testing.T) {
	t.Parallel()
	addr := startNATSConf(t)
	natsWork(t, []string{addr}, "DIALRING_INBOX_PARTITIONS=8")

	publish := func(user, subject string) string {
		return natsDenies(t, user, addr, func(nc *nats.Conn) error { return nc.Publish(subject, []byte("{")) })
	}
	subscribe := func(user, subject string) string {
		return natsDenies(t, user, addr, func(nc *nats.Conn) error { _, err := nc.SubscribeSync(subject); return err })
	}
	// It is the subject that is denied, not the connection.
	for user, subject := range map[string]string{"node": "dialring.beat.node.x", "locator": "dialring.beat.locator.x", "operator": "dialring.anything"} {
		if why := publish(user, subject); why != "" {
			t.Errorf("%s cannot publish %s: %s", user, subject, why)
		}
	}
	both := []string{"$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.DIALRING.CONNZ", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.CREATE.evil",
		"$JS.API.STREAM.DELETE.dialring_inbox_0", "$JS.API.STREAM.PURGE.dialring_inbox_0", "$JS.API.STREAM.MSG.DELETE.dialring_inbox_0", "$JS.API.STREAM.SNAPSHOT.dialring_inbox_0",
		"$JS.API.STREAM.DELETE.KV_dialring_ring", "$JS.API.STREAM.PURGE.KV_dialring_ring", "$JS.API.STREAM.UPDATE.KV_dialring_ring", "$JS.API.STREAM.UPDATE.KV_dialring_keys",
		"$JS.API.STREAM.DELETE.KV_dialring_keys", "$JS.API.STREAM.DELETE.KV_dialring_revoked", "$JS.API.STREAM.PURGE.KV_dialring_revoked", "$JS.API.STREAM.DELETE.dialring_app",
		"$JS.API.CONSUMER.CREATE.dialring_inbox_0.x", "$JS.API.CONSUMER.CREATE.KV_dialring_keys.x", "$JS.API.STREAM.RESTORE.dialring_inbox_0", "dialring.sync",
		"other.beat.node.ws-1", "other.ring", "other.inbox.0.x", "$KV.other_ring.ring", "$KV.other_keys.x", "$JS.API.STREAM.INFO.other_inbox_0", "$JS.API.DIRECT.GET.other_inbox_0",
		"$JS.API.DIRECT.GET.KV_other_ring.$KV.other_ring.ring", "_INBOX.dialring.node.x", "_INBOX.dialring.locator.x"}
	for user, more := range map[string][]string{
		"node": {"$KV.dialring_ring.ring", "dialring.ring", "$KV.dialring_revoked.x", "dialring.revoked", "dialring.beat.locator.x", "$JS.API.STREAM.CREATE.KV_dialring_ring",
			"$JS.API.STREAM.CREATE.KV_dialring_revoked", "$JS.API.CONSUMER.CREATE.KV_dialring_revoked.x", "$JS.API.DIRECT.GET.KV_dialring_revoked.x", "$JS.API.STREAM.UPDATE.dialring_app"},
		"locator": {"dialring.inbox.0.x", "dialring.position.x.y", "dialring.group.x.y", "dialring.beat.node.x", "dialring.app", "dialring.app.kept", "$JS.API.DIRECT.GET.dialring_inbox_0",
			"$JS.API.DIRECT.GET.dialring_inbox_0.dialring.inbox.0.x", "$JS.API.STREAM.MSG.GET.dialring_inbox_0", "$JS.API.STREAM.CREATE.dialring_inbox_0", "$JS.API.STREAM.UPDATE.dialring_inbox_0"},
		"application": {"dialring.ring", "dialring.presence", "dialring.inbox.0.x", "dialring.app", "$KV.dialring_ring.ring", "dialring.beat.node.x"},
	} {
		for _, subject := range append(more, both...) {
			if why := publish(user, subject); !strings.Contains(why, "Permissions Violation for Publish") {
				t.Errorf("%s may publish %s: %q", user, subject, why)
			}
		}
	}
	both = []string{">", "*", "dialring.>", "dialring.inbox.>", "dialring.inbox.*.*", "dialring.position.*.*", "$KV.>", "$KV.dialring_ring.ring", "$SYS.>", "$JS.>", "_INBOX.>", "other.>", "other.ring",
		"other.beat.node.*", "_INBOX.other.node.>"}
	for user, more := range map[string][]string{"node": {"dialring.revoked", "dialring.app", "dialring.presence", "_INBOX.dialring.locator.>", "_INBOX.dialring.>"},
		"locator": {"dialring.app", "dialring.presence", "_INBOX.dialring.node.>", "_INBOX.dialring.>"}, "application": {"dialring.ring", "_INBOX.dialring.>"}} {
		for _, subject := range append(more, both...) {
			if why := subscribe(user, subject); !strings.Contains(why, "Permissions Violation for Subscription") {
				t.Errorf("%s may subscribe to %s: %q", user, subject, why)
			}
		}
	}
	for _, u := range []string{"nats://" + addr, "nats://node:wrong@" + addr, "nats://nobody:@" + addr, "nats://" + natsPasswords["node"] + "@" + addr} {
		if nc, err := nats.Connect(u); err == nil {
			nc.Close()
			t.Errorf("%s was let in", u)
		}
	}
}

// Without one of the passwords a server does not start.
func TestNATSNeedsPasswords(t *testing.T) {
	t.Parallel()
	for name := range natsPasswords {
		variable := "DIALRING_NATS_" + strings.ToUpper(name) + "_PASSWORD"
		env := slices.DeleteFunc(natsConfEnv("nats-1"), func(e string) bool { return strings.HasPrefix(e, variable) })
		p := start(t, "nats", os.Args[0], append(env, "DIALRING_NATS_SERVER_ROUTES=[]", fmt.Sprintf("DR_E2E_NATS=%s,%d,%s,%d", natsConf(t, "cluster.conf"), quietPort(t), t.TempDir(), quietPort(t))))
		await(t, "the server ends that has no password for "+name, p.done)
		if code := p.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(p.text(), variable) {
			t.Errorf("without a password for %s it ended with %d: %s", name, code, p.text())
		}
	}
}

// What the comment in accounts.conf says that permissions do not prevent. If this fails
// NATS has learned it, and the comment can go.
func TestNATSPermissionsEnd(t *testing.T) {
	t.Parallel()
	addr := startNATSConf(t)
	l := startLocator(t, "DIALRING_NATS_URL="+natsURLOf("locator", addr))
	startNode(t, "ws-1", natsURLOf("node", addr), "DIALRING_INBOX_PARTITIONS=8")
	l.waitMembers(t, "ws-1")
	nc := natsAs(t, "node", addr)
	eventually(t, "a message is stored", func() bool {
		_, err := nc.Request("dialring.inbox.0.x", []byte("not a ring"), time.Second)
		return err == nil
	})
	if err := nc.PublishRequest("$JS.API.DIRECT.GET.dialring_inbox_0.dialring.inbox.0.x", "$KV.dialring_ring.ring", nil); err != nil {
		t.Fatal(err)
	}
	operator := natsAs(t, "operator", addr)
	if err := nc.PublishRequest("$JS.API.DIRECT.GET.dialring_inbox_0.dialring.inbox.0.x", "dialring.ring", nil); err != nil { // have it looked at
		t.Fatal(err)
	}
	l.event(t, "ring_refused")
	eventually(t, "the ring is the locator's again, under a new epoch", func() bool {
		m, err := operator.Request("$JS.API.DIRECT.GET.KV_dialring_ring.$KV.dialring_ring.ring", nil, time.Second)
		return err == nil && strings.Contains(string(m.Data), `"epoch":2`) && strings.Contains(string(m.Data), `"restored"`)
	})
}

// Three servers by cluster.conf.
func TestNATSClusterConf(t *testing.T) {
	heavy(t)
	t.Parallel()
	var ports, clusterPorts []int
	var routes, addrs []string
	for range 3 {
		p, c := quietPort(t), quietPort(t)
		ports, clusterPorts = append(ports, p), append(clusterPorts, c)
		routes, addrs = append(routes, fmt.Sprintf("%q", fmt.Sprintf("nats://route:%s@127.0.0.1:%d", natsPasswords["route"], c))), append(addrs, fmt.Sprintf("127.0.0.1:%d", p))
	}
	dir := t.TempDir()
	for i := range 3 {
		name := fmt.Sprintf("nats-%d", i+1)
		start(t, name, os.Args[0], append(natsConfEnv(name), "DIALRING_NATS_SERVER_ROUTES=["+strings.Join(routes, ",")+"]",
			fmt.Sprintf("DR_E2E_NATS=%s,%d,%s/%d,%d", natsConf(t, "cluster.conf"), ports[i], dir, i, clusterPorts[i])))
	}
	for _, a := range addrs {
		waitTCP(t, a)
	}
	operator := natsAs(t, "operator", addrs[0])
	eventually(t, "JetStream has a leader", func() bool {
		m, err := operator.Request("$JS.API.INFO", nil, time.Second)
		return err == nil && !strings.Contains(string(m.Data), `"error":`)
	})
	natsWork(t, addrs)
	for _, stream := range []string{"dialring_inbox_7", "dialring_positions", "KV_dialring_ring"} {
		m, err := operator.Request("$JS.API.STREAM.INFO."+stream, nil, patience)
		if err != nil || !strings.Contains(string(m.Data), `"num_replicas":3`) {
			t.Errorf("%s: %s %v", stream, m.Data, err)
		}
	}
	// A stranger is not let in as a server.
	o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, Cluster: server.ClusterOpts{Name: "dialring", Host: "127.0.0.1", Port: server.RANDOM_PORT}}
	o.Routes = server.RoutesFromStr(fmt.Sprintf("nats://127.0.0.1:%d", clusterPorts[0]))
	stranger, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { stranger.Shutdown(); stranger.WaitForShutdown() }()
	stranger.Start()
	time.Sleep(stayFor) // there is no event for that it is not let in
	if n := stranger.NumRoutes(); n != 0 {
		t.Errorf("a server without the password has %d routes", n)
	}
}
