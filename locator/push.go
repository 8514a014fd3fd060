package locator

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/semaphore"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/metric"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/route"
	"github.com/dialring/dialring/internal/wire"
)

// Bounds of query values.
const (
	maxTTL        = 10 * 365 * 24 * time.Hour
	maxAckTimeout = 60 * time.Second
)

// callWindow is how many bytes of one call are on their way to nodes at a time: a call
// may have 10,000 times the largest message. A small message counts as much as
// leastWeight, so that some 4,000 are: of 10,000 at once the last ones would wait longer
// than a node waits for a store that takes a few thousand a second.
const (
	callWindow  = 8 << 20
	leastWeight = 2 << 10
)

// pushQuery is the query of a push.
type pushQuery struct {
	durable bool
	device  string
	group   string
	ttl     time.Duration // 0: as long as the cluster keeps messages
	wait    time.Duration // for an acknowledgement; 0: not at all
}

// maxTraced is how many messages of one call are traced to their nodes.
const maxTraced = 16

// ackWait is how long wait=ack waits without timeout_ms.
const ackWait = 5 * time.Second

// pushOne: POST /v1/push/{user}. The body is the payload.
func (l *Locator) pushOne(c echo.Context) error {
	user, err := wire.PathUser(c.Request().URL, "/v1/push/", "")
	if err != nil {
		return l.refusedPush(keyOf(c), true, badRequest("%v", err))
	}
	if p := l.reach(c, user); p != nil {
		return l.refusedPush(keyOf(c), true, p)
	}
	return l.pushTo(c, user)
}

// refusedPush counts a push that got no further.
func (l *Locator) refusedPush(k *apiKey, durable bool, p *wire.Problem) *wire.Problem {
	k.counted(1, false)
	l.metrics.pushes.WithLabelValues(metric.Kinds[metric.Kind(durable)], string(p.Code)).Inc()
	return p
}

// pushTo pushes the body of a request to a user.
func (l *Locator) pushTo(c echo.Context, user string) error {
	r := c.Request()
	l.metrics.callOne.Inc()
	q, p := readPushQuery(r)
	if p == nil && q.group != "" {
		p = badRequest("a push is to a user or to a group: POST /v1/push?group=")
	}
	if p == nil {
		p = checkKey(r.Header.Values("Idempotency-Key"))
	}
	var body []byte
	var isJSON bool
	if p == nil {
		body, isJSON, p = l.readPayload(r)
	}
	if p != nil {
		return l.refusedPush(keyOf(c), q.durable, p)
	}
	span := l.tracer.Request(r, "/v1/push/{user}")
	j := &job{key: keyOf(c), start: time.Now(), Job: route.Job{Call: peer.Call{Op: peer.OpPush, User: user, Device: q.device, ID: l.ids.Next(), JSON: isJSON, Body: body,
		Durable: q.durable, TTL: q.ttl, Key: r.Header.Get("Idempotency-Key"), Trace: span.Carrier()}, Group: route.NewGroup(1)}}
	l.router.Send(l.ctx, &j.Job)
	<-j.Group.Done
	res, p := l.result(j)
	if p != nil {
		span.End(string(p.Code))
		return p
	}
	span.Set("dialring.node", res.Node)
	defer span.End("")
	if q.wait > 0 && res.Seq > 0 {
		res.Acked = l.router.awaitAck(r.Context(), user, res.Seq, q.wait)
	}
	return httpd.JSON(c.Response(), wire.AppendPushResult(make([]byte, 0, 192), &res))
}

// job is a push of a service.
type job struct {
	route.Job
	key   *apiKey
	start time.Time
	acked int // sessions that acknowledged it, if the caller waits for that
}

// result is what the caller is told of a job.
func (l *Locator) result(j *job) (wire.PushResult, *wire.Problem) {
	res, p := j.Result()
	kind := metric.Kind(j.Durable)
	j.key.counted(1, p == nil)
	switch {
	case p != nil:
		l.metrics.pushes.WithLabelValues(metric.Kinds[kind], string(p.Code)).Inc()
		return res, p
	case res.Duplicate:
		l.metrics.pushes.WithLabelValues(metric.Kinds[kind], resultDuplicate).Inc()
	default:
		l.metrics.pushed[kind].Inc()
	}
	l.metrics.pushing[kind].Observe(time.Since(j.start).Seconds())
	res.Acked = j.acked
	return res, nil
}

// readPayload reads the body of a push, which is the message, and tells whether it is
// JSON.
func (l *Locator) readPayload(r *http.Request) (body []byte, isJSON bool, p *wire.Problem) {
	if body, p = l.readBody(r, l.cfg.MaxMessageBytes); p != nil {
		return nil, false, p
	}
	if isJSON, p = isJSONBody(r); p != nil {
		return nil, false, p
	}
	if isJSON {
		if err := wire.CheckJSON(body); err != nil {
			return nil, false, badRequest("the body: %v", err)
		}
	}
	return body, isJSON, nil
}

// isJSONBody tells by the Content-Type whether the body is JSON; anything else
// is bytes.
func isJSONBody(r *http.Request) (bool, *wire.Problem) {
	ct := r.Header.Get("Content-Type")
	switch ct {
	case "application/json":
		return true, nil
	case "":
		return false, nil
	}
	t, params, err := mime.ParseMediaType(ct)
	if err != nil {
		return false, badRequest("the Content-Type cannot be read: %v", err)
	}
	if t != "application/json" {
		return false, nil
	}
	if cs := params["charset"]; cs != "" && !strings.EqualFold(cs, "utf-8") {
		return false, badRequest("JSON is UTF-8, not %s", cs)
	}
	return true, nil
}

func checkKey(keys []string) *wire.Problem {
	if len(keys) > 1 {
		return badRequest("there is more than one Idempotency-Key")
	}
	if len(keys) == 1 && (keys[0] == "" || len(keys[0]) > wire.MaxIdempotencyKey) {
		return badRequest("an Idempotency-Key has 1 to %d bytes, this one has %d", wire.MaxIdempotencyKey, len(keys[0]))
	}
	return nil
}

// readPushQuery checks every value of the query: a mistyped one must not turn
// into a push of another kind.
func readPushQuery(r *http.Request) (pushQuery, *wire.Problem) {
	q := pushQuery{durable: true}
	if r.URL.RawQuery == "durable=false" { // by far the most frequent one that is not empty
		q.durable = false
		return q, nil
	}
	if r.URL.RawQuery == "" {
		return q, nil
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return q, badRequest("the query cannot be read: it is not validly percent-encoded")
	}
	wait, asked, timeout := false, false, ackWait
	for name, v := range values {
		if len(v) != 1 {
			return q, badRequest("%s is given more than once", name)
		}
		switch name {
		case "durable":
			if v[0] != "true" && v[0] != "false" {
				return q, badRequest("durable is %q; it is true or false", v[0])
			}
			asked, q.durable = true, v[0] == "true"
		case "device":
			if err := wire.CheckDevice(v[0]); err != nil {
				return q, badRequest("device: %v", err)
			}
			q.device = v[0]
		case "group":
			if err := wire.CheckUser(v[0]); err != nil {
				return q, badRequest("group: %v", err)
			}
			q.group = v[0]
		case "ttl_ms":
			var p *wire.Problem
			if q.ttl, p = readMillis(name, v[0], maxTTL); p != nil {
				return q, p
			}
		case "timeout_ms":
			var p *wire.Problem
			if timeout, p = readMillis(name, v[0], maxAckTimeout); p != nil {
				return q, p
			}
		case "wait":
			if v[0] != "ack" {
				return q, badRequest("wait is %q; it can only be ack", v[0])
			}
			wait = true
		default:
			return q, badRequest("the query has %q; it may have durable, device, group, ttl_ms, wait and timeout_ms", httpd.Cut(name))
		}
	}
	if q.device != "" {
		if asked && q.durable {
			return q, badRequest("a push to one device is not stored: leave device out, or set durable=false")
		}
		q.durable = false
	}
	if wait && !q.durable {
		return q, badRequest("only stored messages are acknowledged: wait=ack does not go with durable=false or device")
	}
	if wait {
		q.wait = timeout
	}
	return q, nil
}

func readMillis(name, v string, most time.Duration) (time.Duration, *wire.Problem) {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 1 || n > most.Milliseconds() {
		return 0, badRequest("%s is %q; it is a number of milliseconds from 1 to %d", name, v, most.Milliseconds())
	}
	return time.Duration(n) * time.Millisecond, nil
}

// manyRequest is the body of POST /v1/push.
type manyRequest struct {
	Users    []string        `json:"users"`
	Data     json.RawMessage `json:"data"`
	Messages []manyMessage   `json:"messages"`
}

type manyMessage struct {
	User string          `json:"user"`
	Data json.RawMessage `json:"data"`
	ID   string          `json:"id"`
}

// pushMany: POST /v1/push, one message to many users or a message for each.
func (l *Locator) pushMany(c echo.Context) error {
	r := c.Request()
	if isStream(r) {
		return l.pushStream(c)
	}
	q, p := readPushQuery(r)
	if p != nil {
		return p
	}
	if q.group != "" {
		return l.pushGroup(c, q)
	}
	body, p := l.readJSON(r, l.cfg.MaxBodyBytes)
	if p != nil {
		return p
	}
	var req manyRequest
	if err := wire.DecodeJSON(body, &req); err != nil {
		return badRequest("the body: %v", err)
	}
	if p := l.checkBatch(max(len(req.Users), len(req.Messages))); p != nil {
		return p
	}
	messages, p := req.messages()
	if p != nil {
		return p
	}
	keys := r.Header.Values("Idempotency-Key")
	if p := checkKey(keys); p != nil {
		return p
	}
	if len(keys) > 0 {
		if req.Messages != nil {
			return badRequest("an Idempotency-Key goes with users; here each message has its own, in id")
		}
		for i := range messages { // keys are each user's own
			messages[i].ID = keys[0]
		}
	}

	l.metrics.calls.WithLabelValues("many").Inc()
	span := l.tracer.Request(r, "/v1/push")
	span.SetInt("dialring.messages", len(messages))
	defer span.End("")
	trace, start := span.Carrier(), time.Now()
	halves := wire.HalfEscapes(body)
	jobs, key := make([]job, len(messages)), keyOf(c)
	g := route.NewGroup(len(messages))
	g.Window = semaphore.NewWeighted(callWindow)
	for i, m := range messages {
		j := &jobs[i]
		j.Group, j.key, j.start, j.Durable = g, key, start, q.durable
		if j.Problem = l.checkMessage(r, key, m); j.Problem == nil && wire.BrokenID(m.User, halves) {
			j.Problem = badRequest("the user id has an escape that is no character")
		}
		if j.Problem != nil {
			g.One(0)
			continue
		}
		j.Call = peer.Call{Op: peer.OpPush, User: m.User, Device: q.device, ID: l.ids.Next(), JSON: true, Body: m.Data,
			Durable: q.durable, TTL: q.ttl, Key: m.ID}
		if i < maxTraced {
			j.Trace = trace
		}
		j.Weight = max(len(m.Data), leastWeight)
		if err := g.Window.Acquire(l.ctx, int64(j.Weight)); err != nil {
			j.Weight = 0
			j.Problem = wire.NewProblem(http.StatusServiceUnavailable, wire.CodeDraining, "this locator is about to stop; ask another")
			g.One(0)
			continue
		}
		l.router.Send(l.ctx, &j.Job)
	}
	<-g.Done
	if q.wait > 0 {
		var wg sync.WaitGroup
		for i := range jobs {
			if j := &jobs[i]; j.Problem == nil && j.Reply.Seq > 0 {
				wg.Go(func() { j.acked = l.router.awaitAck(r.Context(), j.User, j.Reply.Seq, q.wait) })
			}
		}
		wg.Wait()
	}
	return httpd.JSON(c.Response(), l.results(messages, jobs))
}

// messages lists the messages of both forms of the call.
func (r *manyRequest) messages() ([]manyMessage, *wire.Problem) {
	switch n := max(len(r.Users), len(r.Messages)); {
	case r.Users != nil && r.Messages != nil:
		return nil, badRequest("the body has users and messages; send one of the two")
	case n == 0:
		return nil, badRequest(`the body must name users: {"users":["a","b"],"data":…} or {"messages":[{"user":"a","data":…}]}`)
	}
	if r.Messages != nil {
		return r.Messages, nil
	}
	if r.Data == nil {
		return nil, badRequest("the body has no data, which is the message")
	}
	out := make([]manyMessage, len(r.Users))
	for i, u := range r.Users {
		out[i] = manyMessage{User: u, Data: r.Data}
	}
	return out, nil
}

// checkMessage refuses one message of a call; the others go on.
func (l *Locator) checkMessage(r *http.Request, k *apiKey, m manyMessage) *wire.Problem {
	if err := wire.CheckUser(m.User); err != nil {
		return badRequest("%v", err)
	}
	switch {
	case !k.reaches(m.User):
		l.refusedKey(r, keyUsers, k.name, "target", httpd.Cut(m.User))
		return notReached()
	case m.Data == nil:
		return badRequest("the message has no data")
	case len(m.Data) > l.cfg.MaxMessageBytes:
		l.limited(limitBody)
		return wire.NewProblem(http.StatusRequestEntityTooLarge, wire.CodeTooLarge, "the message has %d bytes; at most %d are allowed", len(m.Data), l.cfg.MaxMessageBytes)
	case len(m.ID) > wire.MaxIdempotencyKey:
		return badRequest("an id has at most %d bytes, this one has %d", wire.MaxIdempotencyKey, len(m.ID))
	}
	return nil
}

// results lists what became of each message, in the order of the call.
func (l *Locator) results(messages []manyMessage, jobs []job) []byte {
	b := make([]byte, 0, 160*len(jobs)+16)
	b = append(b, `{"results":[`...)
	for i := range jobs {
		if i > 0 {
			b = append(b, ',')
		}
		res, p := l.result(&jobs[i])
		if p != nil {
			b = append(b, `{"user":`...)
			b = wire.AppendString(b, messages[i].User)
			b = appendProblem(append(b, ','), p)
			continue
		}
		res.User = messages[i].User
		b = wire.AppendPushResult(b, &res)
	}
	return append(b, "]}"...)
}

// broadcastEnvelope is what the body of a broadcast may have around its message.
const broadcastEnvelope = 1024

// broadcast: POST /v1/broadcast, to every connected session.
func (l *Locator) broadcast(c echo.Context) error {
	r := c.Request()
	if r.URL.RawQuery != "" && r.URL.RawQuery != "durable=false" {
		return badRequest("a broadcast takes no query; it goes to the sessions that are connected now")
	}
	body, p := l.readJSON(r, l.cfg.MaxMessageBytes+broadcastEnvelope)
	if p != nil {
		return p
	}
	var req struct {
		Data json.RawMessage `json:"data"`
	}
	if err := wire.DecodeJSON(body, &req); err != nil {
		return badRequest("the body: %v", err)
	}
	switch {
	case req.Data == nil:
		return badRequest(`the body has no data: {"data":…}`)
	case len(req.Data) > l.cfg.MaxMessageBytes:
		l.limited(limitBody)
		return wire.NewProblem(http.StatusRequestEntityTooLarge, wire.CodeTooLarge, "the message has %d bytes; at most %d are allowed", len(req.Data), l.cfg.MaxMessageBytes)
	}
	l.metrics.calls.WithLabelValues("broadcast").Inc()
	keyOf(c).counted(1, true)
	b, err := json.Marshal(l.router.broadcast(l.ids.Next(), req.Data))
	if err != nil {
		return err
	}
	return httpd.JSON(c.Response(), b)
}
