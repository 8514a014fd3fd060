package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// maxAnswer is how many bytes of a locator's answer are read; one that is longer is no JSON.
const maxAnswer = 1 << 20

// locate asks the locators, in random order, until one answers.
func (c *Client) locate(ctx context.Context) (*wire.LocateResponse, *ended) {
	token := ""
	if c.cfg.Token != nil {
		var err error
		if token, err = c.cfg.Token(ctx); err != nil {
			return nil, &ended{err: fmt.Errorf("dialring: get a user token: %w", err)}
		}
	}
	body, err := json.Marshal(wire.LocateRequest{Device: c.cfg.Device, Failed: c.failedNodes()})
	if err != nil {
		return nil, &ended{err: err}
	}
	last := &ended{err: errNoAnswer}
	// #nosec G404 -- jitter
	for _, i := range rand.Perm(len(c.cfg.Locators)) {
		loc, e := c.locateAt(ctx, c.cfg.Locators[i], token, body)
		if e == nil {
			c.mu.Lock()
			c.refusals = 0
			c.mu.Unlock()
			return loc, nil
		}
		e.after = max(e.after, last.after) // whoever asked for more time gets it
		if answered(last.err) && !answered(e.err) {
			e.err = last.err // an answer tells more than that there was none
		}
		last = e
		var api *APIError
		if e.stop != nil || ctx.Err() != nil || errors.As(e.err, &api) && api.Status == http.StatusUnauthorized {
			break // the others would refuse that token, too
		}
	}
	return nil, last
}

func (c *Client) locateAt(ctx context.Context, base, token string, body []byte) (*wire.LocateResponse, *ended) {
	u := base + "/v1/locate"
	if c.cfg.User != "" {
		u += "?user=" + url.QueryEscape(c.cfg.User)
		if len(c.cfg.SendTo) > 0 {
			u += "&send_to=" + url.QueryEscape(strings.Join(c.cfg.SendTo, ","))
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(body))
	if err != nil {
		return nil, &ended{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return nil, &ended{err: fmt.Errorf("dialring: locate: %w", err)}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, &ended{err: fmt.Errorf("dialring: locate: %w", err)}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, c.refused(apiError(resp, b))
	}
	var loc wire.LocateResponse
	if err := json.Unmarshal(b, &loc); err != nil || loc.URL == "" || loc.Ticket == "" || loc.User == "" {
		return nil, &ended{err: fmt.Errorf("dialring: locate: %s does not answer like a locator", base)}
	}
	if user := c.userNow(); user != "" && loc.User != user {
		return nil, &ended{err: fmt.Errorf("dialring: locate: %s answers for another user", base)}
	}
	return &loc, nil
}

// userNow and setUser are for the user that all answers and welcomes have to name.
func (c *Client) userNow() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.user
}

func (c *Client) setUser(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.user = user
}

// refused decides whether a locator's answer is final. A token that is refused
// is asked for once more, since it may just have expired.
func (c *Client) refused(e *APIError) *ended {
	final := e.Status >= 400 && e.Status < 500 && e.Status != http.StatusTooManyRequests && e.Status != http.StatusRequestTimeout
	if e.Status == http.StatusUnauthorized {
		c.mu.Lock()
		c.refusals++
		final = c.refusals > 1
		c.mu.Unlock()
	}
	out := &ended{err: e, after: e.RetryAfter}
	if final {
		out.stop = &StoppedError{Status: e.Status, Reason: e.Detail}
	}
	return out
}

// refusalsNow and setRefusals are for a locate that does not count.
func (c *Client) refusalsNow() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusals
}

func (c *Client) setRefusals(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals = n
}

// APIError is an answer of a locator or node that is not 200.
type APIError struct {
	Status     int
	Code       string // stable, such as rate_limited; see the contract
	Detail     string
	RetryAfter time.Duration // how long to wait at least, if it says
}

func (e *APIError) Error() string {
	if e.Status == 0 { // of one message among several
		return fmt.Sprintf("dialring: %s: %s", e.Code, e.Detail)
	}
	return fmt.Sprintf("dialring: %d %s: %s", e.Status, e.Code, e.Detail)
}

// apiError reads a problem document.
func apiError(resp *http.Response, body []byte) *APIError {
	e := &APIError{Status: resp.StatusCode}
	var p wire.Problem
	if json.Unmarshal(body, &p) == nil && p.Code != "" {
		e.Code, e.Detail = string(p.Code), p.Detail
	} else {
		e.Detail = resp.Status
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(min(s, 86400)) * time.Second
	}
	return e
}
