package wsnode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/wire"
)

// application is who receives what clients send without naming a user.
type application interface {
	// ask hands a message over, and returns what the application answered: JSON, or
	// nothing. It ends with ctx.
	ask(ctx context.Context, m *wire.AppMessage) (json.RawMessage, *wire.Problem)
}

// Values of DIALRING_APP beside the URL of a webhook.
const (
	appNATS      = "nats"
	appJetStream = "jetstream"
)

// newApplication makes the application of the settings, nil if there is none.
func (n *Node) newApplication() application {
	switch app := n.cfg.App; app {
	case "":
		return nil
	case appNATS:
		return natsApp{n}
	case appJetStream:
		return keptApp{n}
	default:
		return &webhook{url: app, secret: []byte(n.cfg.AppSecret), limit: n.cfg.MaxMessageBytes, slots: make(chan struct{}, n.cfg.AppConcurrency),
			client: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
				Transport: &http.Transport{MaxIdleConnsPerHost: n.cfg.AppConcurrency, IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment}}}
	}
}

// noApplication says that the application did not take or not answer a message.
func noApplication(format string, args ...any) *wire.Problem {
	return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeNoApplication, format, args...)
}

func encodeMessage(m *wire.AppMessage) []byte {
	head := *m
	head.Data = nil
	return wire.WithData(head, m.Data)
}

// natsApp is an application that answers requests on a subject of NATS.
type natsApp struct{ n *Node }

func (a natsApp) ask(ctx context.Context, m *wire.AppMessage) (json.RawMessage, *wire.Problem) {
	data, refused, err := a.n.nats.AskApplication(ctx, encodeMessage(m))
	switch {
	case errors.Is(err, cluster.ErrNobody):
		return nil, noApplication("nobody of the application is there")
	case err != nil:
		a.n.log.Warn("the application does not answer", "event", "app_silent", "id", m.ID, "error", err)
		return nil, noApplication("the application did not answer in time")
	case refused != "":
		return nil, wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "%s", wire.Printable(refused, maxRefusal))
	}
	return checkAnswer(data, a.n.cfg.MaxMessageBytes)
}

// keptApp is an application that reads a stream of JetStream.
type keptApp struct{ n *Node }

func (a keptApp) ask(ctx context.Context, m *wire.AppMessage) (json.RawMessage, *wire.Problem) {
	seq, err := a.n.nats.KeepForApplication(ctx, m.ID, encodeMessage(m), a.n.cfg.InboxMaxAge)
	if err != nil {
		a.n.log.Warn("a message for the application cannot be stored", "event", "app_unstored", "id", m.ID, "error", err)
		return nil, wire.NewProblem(http.StatusServiceUnavailable, wire.CodeStoreUnavailable, "the message for the application could not be stored; send it again with the same id")
	}
	return fmt.Appendf(nil, `{"seq":%d}`, seq), nil
}

// maxRefusal bounds what a client is told of why the application refused it.
const maxRefusal = 200

func checkAnswer(data []byte, limit int) (json.RawMessage, *wire.Problem) {
	data = bytes.TrimSpace(data)
	switch {
	case len(data) == 0:
		return nil, nil
	case len(data) > limit:
		return nil, wire.NewProblem(http.StatusBadGateway, wire.CodeInternal, "the application's answer is too long")
	case wire.CheckJSON(data) != nil:
		return nil, wire.NewProblem(http.StatusBadGateway, wire.CodeInternal, "the application's answer is not JSON")
	}
	return data, nil
}

// webhook is an application behind a URL.
//
//	POST, signed --2xx--> its JSON is the answer
//	  ^    |  \--4xx but 408, 425, 429--> refused
//	  |    +--anything else, or no answer in a try's time--+
//	  +-- a wait that doubles, or Retry-After -------------+--the time is over--> no_application
type webhook struct {
	url    string
	secret []byte
	limit  int           // bytes of an answer
	slots  chan struct{} // calls at the same time
	client *http.Client
}

const (
	webhookTry   = 5 * time.Second // one attempt
	webhookPause = 100 * time.Millisecond
	webhookMost  = 2 * time.Second
)

func (w *webhook) ask(ctx context.Context, m *wire.AppMessage) (json.RawMessage, *wire.Problem) {
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	case <-ctx.Done():
		return nil, wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "the application is busy; try again later")
	}
	body := encodeMessage(m)
	for pause := webhookPause; ; pause = min(2*pause, webhookMost) {
		data, p, after := w.try(ctx, m.ID, body)
		if after == 0 {
			return data, p
		}
		// Full jitter, and never earlier than it asked for.
		select {
		case <-time.After(max(after, rand.N(pause))):
		case <-ctx.Done():
			return nil, p
		}
	}
}

// try posts once. after is not 0 if it should be tried again: then it is the least
// wait, and the problem what to say if there is no time for that.
func (w *webhook) try(ctx context.Context, id string, body []byte) (data json.RawMessage, p *wire.Problem, after time.Duration) {
	const soon = time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, webhookTry)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return nil, noApplication("the application cannot be asked"), 0
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", id)
	r.Header.Set(wire.HeaderSignature, wire.SignWebhook(w.secret, body, time.Now()))
	resp, err := w.client.Do(r)
	if err != nil {
		return nil, noApplication("the application did not answer in time"), soon
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, int64(w.limit)+1))
	switch code := resp.StatusCode; {
	case err != nil:
		return nil, noApplication("the application did not answer whole"), soon
	case code >= 200 && code < 300:
		data, p = checkAnswer(answer, w.limit)
		return data, p, 0
	case code >= 400 && code < 500 && code != http.StatusRequestTimeout && code != http.StatusTooEarly && code != http.StatusTooManyRequests:
		return nil, wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "%s", refusal(code, answer)), 0
	default:
		after := soon
		if sec, err := strconv.Atoi(strings.TrimSpace(resp.Header.Get("Retry-After"))); err == nil && sec > 0 {
			after = time.Duration(min(sec, 3600)) * time.Second
		}
		return nil, noApplication("the application answers with status %d", code), after
	}
}

// refusal is what a client is told: the detail of a problem document, if it is one.
func refusal(code int, answer []byte) string {
	var p struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(answer, &p) == nil && p.Detail != "" {
		return wire.Printable(p.Detail, maxRefusal)
	}
	return fmt.Sprintf("the application refuses it with status %d", code)
}
