package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// neighbours are users who behave, and services that push to them: nothing of that may
// fail or be lost, whatever others do.
type neighbours struct {
	c     *normal
	users []string
	http  *http.Client
	stop  atomic.Bool

	mu       sync.Mutex
	findings []string
	pushes   []neighbourPush
}

type neighbourPush struct {
	sent, answered, came time.Time
	times                int
}

func (n *neighbours) find(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.findings) < 10 {
		n.findings = append(n.findings, fmt.Sprintf(format, args...))
	}
}

// read takes what comes for a user until the test ends, and answers pings.
func (n *neighbours) read(b *bare) {
	_ = b.SetReadDeadline(time.Time{})
	for {
		op, p, err := b.frame()
		switch {
		case n.stop.Load():
			return
		case err != nil:
			n.find("%s lost its connection: %v", b.user, err)
			return
		case op == 8:
			n.find("%s was closed: %q", b.user, p)
			return
		case op == 9:
			_, _ = b.Write(inprocFrame(0x8A, p))
		case op == 1:
			var m wire.Message
			if err := json.Unmarshal(p, &m); err != nil {
				n.find("%s got %s", b.user, p)
				continue
			}
			num, err := strconv.Atoi(string(m.Data))
			if m.Type != wire.TypeMessage || err != nil {
				n.find("%s got %s", b.user, p)
				continue
			}
			n.mu.Lock()
			n.pushes[num].came = time.Now()
			n.pushes[num].times++
			n.mu.Unlock()
		}
	}
}

// push pushes number num to its user, every second one stored.
func (n *neighbours) push(num int) {
	user := n.users[num%len(n.users)]
	u := "http://" + n.c.l.addr + "/v1/push/" + user
	if num/len(n.users)%2 == 0 {
		u += "?durable=false"
	}
	req, err := http.NewRequest("POST", u, strings.NewReader(strconv.Itoa(num)))
	if err != nil {
		n.find("%v", err)
		return
	}
	req.Header.Set("Authorization", "Bearer dev")
	req.Header.Set("Content-Type", "application/json")
	n.mu.Lock()
	n.pushes[num].sent = time.Now()
	n.mu.Unlock()
	resp, err := n.http.Do(req)
	if err != nil {
		n.find("push %d to %s: %v", num, user, err)
		return
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	var r wire.PushResult
	if err != nil || resp.StatusCode != 200 || json.Unmarshal(b, &r) != nil || r.Delivered != 1 {
		n.find("push %d to %s: %d %s %v", num, user, resp.StatusCode, b, err)
	}
	n.mu.Lock()
	n.pushes[num].answered = time.Now()
	n.mu.Unlock()
}

// phase pushes rate a second for a while, and waits until all have come. It returns the
// medians of the time until a push was answered, and until it had come.
func (n *neighbours) phase(t *testing.T, rate int, long time.Duration) (answer, arrival time.Duration) {
	t.Helper()
	n.mu.Lock()
	first := len(n.pushes)
	n.mu.Unlock()
	jobs := make(chan int, 64)
	var work sync.WaitGroup
	for range 64 {
		work.Go(func() {
			for num := range jobs {
				n.push(num)
			}
		})
	}
	begin := time.Now()
	for sent := 0; time.Since(begin) < long; sent++ {
		time.Sleep(time.Until(begin.Add(time.Duration(sent) * time.Second / time.Duration(rate))))
		n.mu.Lock()
		n.pushes = append(n.pushes, neighbourPush{})
		n.mu.Unlock()
		jobs <- first + sent
	}
	close(jobs)
	work.Wait()
	missing := func() (k int) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, p := range n.pushes[first:] {
			if p.times == 0 {
				k++
			}
		}
		return k
	}
	for end := time.Now().Add(patience); missing() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if k := missing(); k > 0 {
		n.find("%d pushes never came", k)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var answers, arrivals []time.Duration
	for num, p := range n.pushes[first:] {
		if p.times > 1 {
			n.findings = append(n.findings, fmt.Sprintf("push %d came %d times", first+num, p.times))
		}
		answers, arrivals = append(answers, p.answered.Sub(p.sent)), append(arrivals, p.came.Sub(p.sent))
	}
	slices.Sort(answers)
	slices.Sort(arrivals)
	at := func(l []time.Duration, part float64) time.Duration {
		return l[int(float64(len(l)-1)*part)].Round(10 * time.Microsecond)
	}
	t.Logf("%d pushes: answered within %v (median), %v (99 %%); arrived within %v, %v", len(answers), at(answers, .5), at(answers, .99), at(arrivals, .5), at(arrivals, .99))
	return at(answers, .5), at(arrivals, .5)
}

// hot pushes to one user, at most so many a second, until ctx ends.
func (n *neighbours) hot(ctx context.Context, rate int, pushed *atomic.Int64) {
	p, err := client.NewPusher(client.PusherConfig{Locators: []string{"http://" + n.c.l.addr}, APIKey: "dev"})
	if err != nil {
		n.find("%v", err)
		return
	}
	s, err := p.Stream(context.Background(), client.Ephemeral())
	if err != nil {
		n.find("the stream of the hot user: %v", err)
		return
	}
	var results sync.WaitGroup
	results.Go(func() {
		for r := range s.Results() {
			if r.Err != nil {
				n.find("a push to the hot user: %v", r.Err)
			}
		}
	})
	begin := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		if i%100 == 0 {
			time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		if err := s.Push(client.Item{User: "hot", Data: i}); err != nil {
			n.find("a push to the hot user: %v", err)
			break
		}
		pushed.Add(1)
	}
	_ = s.Close()
	results.Wait()
	if err := s.Err(); err != nil {
		n.find("the stream of the hot user: %v", err)
	}
}

// rubbish is a service that sends what cannot be, until ctx ends.
func (n *neighbours) rubbish(ctx context.Context, sent *atomic.Int64) {
	deep := strings.Repeat("[", 10_000)
	large := `"` + strings.Repeat("x", 70_000) + `"`
	for i := 0; ctx.Err() == nil; i++ {
		body, path, key := "{", "/v1/push/"+n.users[i%len(n.users)], "dev"
		switch i % 7 {
		case 0:
			body = deep
		case 1:
			body = large
		case 2:
			path, body = "/v1/push", `{"users":[`+strings.Repeat(`"\n",`, 5000)+`""],"data":1}`
		case 3:
			key = "wrong"
		case 4:
			path = "/v1/push/%00"
		case 5:
			path = "/v1/nothing"
		}
		req, err := http.NewRequestWithContext(ctx, "POST", "http://"+n.c.l.addr+path, strings.NewReader(body))
		if err != nil {
			n.find("%v", err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		resp, err := n.http.Do(req)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, io.EOF) {
				n.find("rubbish of kind %d: %v", i%7, err)
			}
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode >= 500 || resp.StatusCode == 200 && i%7 != 2 {
			n.find("rubbish of kind %d is answered %d %.200s", i%7, resp.StatusCode, b)
		}
		sent.Add(1)
		time.Sleep(5 * time.Millisecond)
	}
}

// dialer dials in a loop, with tickets that are good, until ctx ends.
func (n *neighbours) dialer(ctx context.Context, dialed, refused *atomic.Int64) {
	for ctx.Err() == nil {
		node := n.c.nodes[dialed.Load()%int64(len(n.c.nodes))]
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.9")}}).DialContext(ctx, "tcp", node.addr)
		if err != nil {
			if ctx.Err() == nil {
				n.find("the one who dials in a loop: %v", err)
			}
			return
		}
		d := newInprocDial(n.c.signer.Ticket(ticket.Ticket{User: "looper", Device: "d", Node: node.id}, time.Now()))
		_, _ = io.WriteString(conn, d.String())
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		answer := make([]byte, 64)
		k, _ := io.ReadAtLeast(conn, answer, 12)
		switch {
		case bytes.HasPrefix(answer[:k], []byte("HTTP/1.1 101")), bytes.HasPrefix(answer[:k], []byte("HTTP/1.1 421")):
		case bytes.HasPrefix(answer[:k], []byte("HTTP/1.1 429")):
			refused.Add(1)
		default:
			n.find("the one who dials in a loop is answered %q", answer[:k])
		}
		conn.Close()
		dialed.Add(1)
	}
}

// halfOpen keeps so many handshakes half open at a node, until ctx ends.
func (n *neighbours) halfOpen(ctx context.Context, node *nodeProc, count int) {
	var all sync.WaitGroup
	for range count {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.8")}}).DialContext(ctx, "tcp", node.addr)
				if err != nil {
					return
				}
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				_, _ = io.WriteString(conn, "GET /v1/ws HTTP/1.1\r\nHost: x\r\n")
				_, _ = io.Copy(io.Discard, conn)
				stop()
				conn.Close()
			}
		})
	}
	all.Wait()
}

// cpu is the processor time so far, in seconds: of the locator, two nodes, and this process.
func (c *normal) cpu(t *testing.T) (out [4]float64) {
	t.Helper()
	for i, p := range []*process{c.l.process, c.nodes[0].process, c.nodes[1].process} {
		out[i] = p.cpu(t).Seconds()
	}
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		t.Fatal(err)
	}
	out[3] = time.Duration(own.Utime.Nano() + own.Stime.Nano()).Seconds()
	return out
}

// Some hundreds of clients, of whom one in ten never reads; one user who gets 10,000 pushes
// a second, or as many as the machine manages; a service that sends rubbish; one who dials
// in a loop; two hundred half-open handshakes: nothing of the others fails or is lost, slow
// readers end with 4101, and the memory of each process keeps to what is documented. How
// long pushes to the others take against the same without all that is measured, not judged.
func TestNeighbours(t *testing.T) {
	heavy(t)
	readers, slow, rate, quiet, noisy := 180, 20, 200, 2*time.Second, 5*time.Second
	if os.Getenv("DIALRING_NEIGHBOURS") == "1" {
		readers, slow, rate, quiet, noisy = 540, 60, 400, 15*time.Second, 45*time.Second
	}
	hotRate := 10_000
	if raceFlag != "" { // it makes each push cost several times as much
		hotRate = 2000
	}
	const memory = 256 << 20
	c := startNormal(t, 2, fmt.Sprint("DIALRING_MEMORY_LIMIT=", memory), "DIALRING_SESSION_QUEUE_BYTES=262144")
	n := &neighbours{c: c, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: patience}}
	defer n.http.CloseIdleConnections()

	// Whoever owns a user is whom the ticket is taken by.
	connect := func(user, from string) *bare {
		for _, node := range c.nodes {
			b, r := c.try(t, node, from, ticket.Ticket{User: user})
			if r == (refusal{}) {
				return b
			}
			if r.status != http.StatusMisdirectedRequest {
				t.Fatalf("%s was refused: %+v", user, r)
			}
		}
		t.Fatalf("%s has no owner", user)
		return nil
	}
	var reading sync.WaitGroup
	var open []*bare
	for i := range readers {
		user := fmt.Sprint("reader-", i)
		b := connect(user, fmt.Sprint("127.0.1.", 1+i%100))
		n.users, open = append(n.users, user), append(open, b)
		reading.Go(func() { n.read(b) })
	}
	var hotGot atomic.Int64
	hot := connect("hot", "127.0.2.1")
	_ = hot.SetReadDeadline(time.Time{})
	open = append(open, hot)
	reading.Go(func() {
		for {
			op, _, err := hot.frame()
			if err != nil || op == 8 {
				if !n.stop.Load() {
					n.find("the hot user was closed: %v", err)
				}
				return
			}
			hotGot.Add(1)
		}
	})
	defer func() {
		n.stop.Store(true)
		for _, b := range open {
			b.Close()
		}
		reading.Wait()
	}()

	answerBefore, arrivalBefore := n.phase(t, rate, quiet)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var bad sync.WaitGroup
	var hotPushed, rubbish, dialed, refused atomic.Int64
	var slowUsers []string
	for i := range slow {
		slowUsers = append(slowUsers, fmt.Sprint("slow-", i))
		_ = connect(slowUsers[i], "127.0.3.1").Conn.(*net.TCPConn).SetReadBuffer(4096) // and never reads
	}
	bad.Go(func() { // what they do not read: 60 KiB each, again and again
		list, _ := json.Marshal(slowUsers)
		body := fmt.Sprintf(`{"users":%s,"data":"%s"}`, list, strings.Repeat("x", 60<<10))
		for ctx.Err() == nil {
			if p := c.l.post("/v1/push?durable=false", "application/json", body, ""); p.status != 200 || strings.Contains(string(p.body), `"error"`) {
				n.find("a push to those that do not read: %d %.300s", p.status, p.body)
			}
			time.Sleep(50 * time.Millisecond) // some 25 MB a second
		}
	})
	bad.Go(func() { n.hot(ctx, hotRate, &hotPushed) })
	bad.Go(func() { n.rubbish(ctx, &rubbish) })
	bad.Go(func() { n.dialer(ctx, &dialed, &refused) })
	bad.Go(func() { n.halfOpen(ctx, c.nodes[0], 200) })

	peak := map[string]float64{}
	watching, stopWatch := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	defer watch.Wait() // also when the test has failed
	defer stopWatch()
	defer bad.Wait()
	defer cancel()
	watch.Go(func() {
		for watching.Err() == nil {
			for _, p := range []*process{c.l.process, c.nodes[0].process, c.nodes[1].process} {
				peak[p.name] = max(peak[p.name], math.Round(p.rss(t)))
			}
			time.Sleep(200 * time.Millisecond)
		}
	})
	begin, cpu := time.Now(), c.cpu(t)
	answerNow, arrivalNow := n.phase(t, rate, noisy)
	took := time.Since(begin).Seconds()
	for i, now := range c.cpu(t) {
		cpu[i] = now - cpu[i]
	}
	closed := func() (k float64) {
		for _, node := range c.nodes {
			k += node.metric(t, `dialring_session_closes_total{reason="too slow"}`)
		}
		return k
	}
	eventually(t, "those that do not read are closed with 4101", func() bool { return closed() >= float64(slow) })
	cancel()
	bad.Wait()
	stopWatch()
	watch.Wait()
	eventually(t, "what the hot user was sent came", func() bool { return hotGot.Load() >= hotPushed.Load() })

	n.mu.Lock()
	for _, f := range n.findings {
		t.Error(f)
	}
	n.mu.Unlock()
	if k := closed(); k != float64(slow) {
		t.Errorf("%v sessions were too slow, %d did not read", k, slow)
	}
	if refused.Load() == 0 || c.nodes[0].limited(t, "user")+c.nodes[1].limited(t, "user")+c.nodes[0].limited(t, "address")+c.nodes[1].limited(t, "address") == 0 {
		t.Errorf("the one who dials in a loop was refused %d times of %d", refused.Load(), dialed.Load())
	}
	if c.nodes[0].limited(t, "memory")+c.nodes[1].limited(t, "memory") > 0 {
		t.Error("memory was full")
	}
	t.Logf("%.0f pushes a second to the hot user, %d requests of rubbish, %d dials in a loop of which %d were refused", float64(hotPushed.Load())/took, rubbish.Load(), dialed.Load(), refused.Load())
	t.Logf("median with neighbours / without: answered %.2f, arrived %.2f", float64(answerNow)/float64(answerBefore), float64(arrivalNow)/float64(arrivalBefore))
	t.Logf("processors busy, of %d (others may take of them, too): locator %.2f, nodes %.2f and %.2f, clients and services %.2f", runtime.NumCPU(), cpu[0]/took, cpu[1]/took, cpu[2]/took, cpu[3]/took)
	t.Logf("resident memory at most, MiB: %v", peak)
	for _, node := range c.nodes {
		// The race detector takes several times as much, and is no part of the promise.
		if most := float64(memory>>20) + 32; raceFlag == "" && peak[node.name] > most {
			t.Errorf("%s had %.0f MiB, more than %.0f", node.name, peak[node.name], most)
		}
	}
}
