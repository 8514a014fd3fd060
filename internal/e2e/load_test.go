package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

type loadConfig struct {
	Locators []*locatorProc
	Edge     *edge // if not nil, everything goes through it
	Users    int
	Devices  int // of each user
	Rate     int // pushes a second (steady); 0: none
	Durable  bool
}

// load is users of the SDK who receive, and services that push to them.
type load struct {
	*checker // what was pushed and what came
	cfg      loadConfig
	locators []string // their URLs
	http     *http.Client
	tls      *tls.Config // nil: the default
	users    []string

	stopPushing context.CancelFunc
	pushing     sync.WaitGroup
	closing     sync.Once

	// Of stored pushes some users have a client beside those of the SDK that finds
	// fault with what comes over the wire.
	wires    []*wireClient
	wiring   sync.WaitGroup
	endWires context.CancelFunc

	devs []*device
	byID map[handlerID]*device

	mu      sync.Mutex
	changed chan struct{} // closed, and another one made, at each event
	behind  time.Duration // the most that a push was sent too late
}

const (
	// wireEach-th users have a wireClient.
	wireEach = 3
	// connectingAtOnce clients connect at the same time.
	connectingAtOnce = 64
	// maxWorkers bounds how many pushes are under way: enough for a rate of 300
	// when none is answered before the 3 s that a locator looks for an owner.
	maxWorkers = 1024
	// pushTimeout is longer than a locator takes for any push.
	pushTimeout = 15 * time.Second
	// givenUp is how long nothing came when what is missing will not come.
	givenUp = 3 * time.Second
	// settled is how long nothing came when nothing is missing: a duplicate may
	// still be under way, and there is no event for that it is not.
	settled = 200 * time.Millisecond
)

// steady is what of a rate, or of a number of pushes, two cores can keep up for as long as
// a test takes: with the race detector, which makes a push cost several times as much, a
// third of it. Pushes that wait for a processor would else be all that a test sees.
func steady(n int) int {
	if raceFlag != "" {
		return (n + 2) / 3
	}
	return n
}

// pushed waits until so many more pushes were answered (steady).
func (l *load) pushed(t *testing.T, n int) {
	t.Helper()
	from := l.answered()
	eventually(t, fmt.Sprintf("%d more pushes are answered", steady(n)), func() bool { return l.answered() >= from+steady(n) })
}

func newLoad(cfg loadConfig) *load {
	cfg.Rate = steady(cfg.Rate)
	l := &load{checker: newChecker(), cfg: cfg, stopPushing: func() {}, endWires: func() {}, changed: make(chan struct{}), byID: map[handlerID]*device{},
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, DisableCompression: true}}}
	l.ordered = cfg.Durable
	for _, p := range cfg.Locators {
		l.locators = append(l.locators, "http://"+p.addr)
	}
	if cfg.Edge != nil {
		l.locators, l.tls = []string{cfg.Edge.url}, cfg.Edge.tls
		l.http.Transport.(*http.Transport).TLSClientConfig = l.tls
	}
	for i := range cfg.Users {
		u := fmt.Sprintf("load-%d", i)
		l.users = append(l.users, u)
		for j := range cfg.Devices {
			d := &device{handlerID: handlerID{u, fmt.Sprintf("d%d", j)}, ended: make(chan error, 1)}
			l.devs = append(l.devs, d)
			l.byID[d.handlerID] = d
			l.expect(d.user, d.device)
		}
		if cfg.Durable && i%wireEach == 0 {
			token := ""
			if len(cfg.Locators) > 0 && cfg.Locators[0].secret != "" {
				token = cfg.Locators[0].token(u)
			}
			l.expect(u, wireDevice)
			l.wires = append(l.wires, &wireClient{user: u, token: token, locators: l.locators, tls: l.tls, got: func(node string, num uint64) { l.deliver(u, wireDevice, node, num) }})
		}
	}
	return l
}

// startLoad connects all users, and then has pushes sent until stop.
func startLoad(t *testing.T, cfg loadConfig) *load {
	t.Helper()
	l := newLoad(cfg)
	t.Cleanup(func() { l.close(t) })
	for _, p := range cfg.Locators {
		// One that shows the ring may still be without its key, and answers 503.
		eventually(t, p.addr+" is ready", func() bool {
			status, _ := call(t, "GET", "http://"+p.addr+"/readyz", "")
			return status == http.StatusOK
		})
	}
	slots := make(chan struct{}, connectingAtOnce)
	late := time.After(patience)
	for i, d := range l.devs {
		select {
		case slots <- struct{}{}:
			l.run(t, d, sync.OnceFunc(func() { <-slots }))
		case <-late:
			t.Fatalf("only %d of %d clients connected within %s", max(i-connectingAtOnce, 0), len(l.devs), patience)
		}
	}
	l.waitConnected(t, func(string) bool { return true })
	var wireCtx context.Context
	wireCtx, l.endWires = context.WithCancel(context.Background())
	for _, w := range l.wires {
		l.wiring.Go(func() { w.run(wireCtx) })
	}
	if cfg.Rate > 0 {
		ctx, cancel := context.WithCancel(context.Background())
		l.stopPushing = cancel
		l.pushing.Go(func() { l.generate(ctx) })
	}
	return l
}

// run has a client connect and receive; up is called when it is connected or
// has stopped.
func (l *load) run(t *testing.T, d *device, up func()) {
	t.Helper()
	as := client.Config{User: d.user}
	if len(l.cfg.Locators) > 0 {
		as = l.cfg.Locators[0].as(d.user)
	}
	c, err := client.New(client.Config{Locators: l.locators, User: as.User, Token: as.Token, Device: d.device, HTTP: l.http, TLS: l.tls,
		OnMessage: func(_ context.Context, m client.Message) {
			n, _ := strconv.ParseUint(string(m.Data), 10, 64) // 0 was never pushed
			// The node is where the client is when it handles the message, which
			// may have come just before.
			l.deliver(d.user, d.device, l.nodeOf(d.user, d.device), n)
		},
		OnEvent: func(e client.Event) {
			if e.State == client.Moving { // it is connected all the time
				return
			}
			l.event(d, e)
			if e.State == client.Connected || e.State == client.Stopped {
				up()
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(context.Background())
	go func() { d.ended <- c.Run(ctx) }()
}

// generate sends pushes at the rate, whatever becomes of the ones before: a
// push that no worker is free for gets a new one.
func (l *load) generate(ctx context.Context) {
	var workers int
	jobs := make(chan int)
	defer close(jobs)
	tick := time.NewTicker(max(time.Second/time.Duration(l.cfg.Rate), time.Millisecond))
	defer tick.Stop()
	random := rand.New(rand.NewPCG(1, 2)) // the same users in each run
	began := l.now()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for ; ctx.Err() == nil; n++ {
			due := began + time.Duration(n)*time.Second/time.Duration(l.cfg.Rate)
			late := l.now() - due
			if late < 0 {
				break
			}
			l.mu.Lock()
			l.behind = max(l.behind, late)
			l.mu.Unlock()
			user := random.IntN(len(l.users))
			select {
			case jobs <- user:
				continue
			default:
			}
			if workers < maxWorkers {
				id := workers
				workers++
				l.pushing.Go(func() { l.work(id, user, jobs) })
				continue
			}
			select {
			case jobs <- user:
			case <-ctx.Done():
			}
		}
	}
}

// work is one producer: it pushes to user, and to those that come.
func (l *load) work(id, user int, jobs <-chan int) {
	for ok := true; ok; user, ok = <-jobs {
		num := l.begin(l.users[user], id)
		l.end(num, l.send(num, l.users[user]))
	}
}

// send sends a push. The locators take turns. One that refuses the connection
// has not seen the push, so the next one gets it; for any other failure of an
// ephemeral push there is no second attempt, which would hide it. A stored one is
// repeated with its key until it is accepted, as a service would.
func (l *load) send(num uint64, user string) answer {
	for end := time.Now().Add(patience); ; time.Sleep(repeatPause) {
		a := l.sendOnce(num, user)
		if !l.cfg.Durable || a.kind == accepted || a.kind == refused || time.Now().After(end) {
			return a
		}
	}
}

// repeatPause is between two attempts of a stored push.
const repeatPause = 50 * time.Millisecond

func (l *load) sendOnce(num uint64, user string) answer {
	a := answer{kind: unavailable}
	for i := range l.locators {
		a = l.post(l.locators[(int(num)+i)%len(l.locators)], user, num)
		if a.kind != unavailable || a.status != 0 {
			break
		}
	}
	return a
}

func (l *load) post(locator, user string, num uint64) answer {
	ctx, cancel := context.WithTimeout(context.Background(), pushTimeout)
	defer cancel()
	u := locator + "/v1/push/" + user
	if !l.cfg.Durable {
		u += "?durable=false"
	}
	body := strconv.FormatUint(num, 10)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, strings.NewReader(body))
	if err != nil {
		return answer{kind: unavailable, why: err.Error()}
	}
	req.Header.Set("Authorization", "Bearer dev")
	req.Header.Set("Content-Type", "application/json")
	if l.cfg.Durable { // with it, net/http repeats the request if the connection breaks
		req.Header.Set("Idempotency-Key", body)
	}
	resp, err := l.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return answer{kind: unavailable, why: err.Error()}
		}
		return answer{kind: unknown, why: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return judge(resp.StatusCode, b, err)
}

// judge tells what an answer means, by the contract.
func judge(status int, body []byte, err error) answer {
	a := answer{kind: unknown, status: status}
	if status != http.StatusOK {
		var p wire.Problem
		_ = json.Unmarshal(body, &p) // if it is none, there is nothing to tell
		a.why = strings.TrimSpace(string(p.Code) + " " + p.Detail)
	}
	switch {
	case status == http.StatusOK:
		var r wire.PushResult
		if err == nil && json.Unmarshal(body, &r) == nil {
			a.kind, a.delivered, a.node, a.stored = accepted, r.Delivered, r.Node, r.Stored
		}
	case status >= 400 && status < 500:
		a.kind = refused
	case status == http.StatusServiceUnavailable:
		a.kind = unavailable
	}
	return a
}

// stop ends the pushes, waits until what was accepted has come or nothing comes
// any more, ends the clients, and reports.
func (l *load) stop(t *testing.T) *report {
	t.Helper()
	l.stopPushing()
	l.pushing.Wait()
	asked := l.now()
	// The wait for what does not come counts from the last push.
	quiet := func() time.Duration { return min(l.quiet(), l.now()-asked) }
	eventually(t, "no more pushes come", func() bool {
		return quiet() >= givenUp || quiet() >= settled && l.outstanding() == 0
	})
	l.close(t)
	return l.report()
}

// close ends everything; only its first call does something.
func (l *load) close(t *testing.T) {
	l.closing.Do(func() {
		l.stopPushing()
		l.pushing.Wait()
		l.endWires()
		l.wiring.Wait()
		for _, d := range l.devs {
			if d.cancel != nil {
				d.cancel()
			}
		}
		for _, d := range l.devs {
			if d.cancel == nil {
				continue // it was never started
			}
			if err := <-d.ended; err != nil {
				t.Errorf("%s/%s: %v", d.user, d.device, err)
			}
		}
		l.http.CloseIdleConnections()
	})
}
