package httpd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"go.uber.org/goleak"

	"github.com/dialring/dialring/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait; nothing that works comes near it.
const patience = 30 * time.Second

var discard = slog.New(slog.DiscardHandler)

func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("there never was %s", what)
	}
	return v
}

// problem reads an answer as a problem document.
func problem(t *testing.T, r *httptest.ResponseRecorder) wire.Problem {
	t.Helper()
	var p wire.Problem
	if err := json.Unmarshal(r.Body.Bytes(), &p); err != nil {
		t.Fatalf("%s: %v", r.Body, err)
	}
	if r.Header().Get("Content-Type") != wire.ProblemType || p.Status != r.Code || p.Type != "about:blank" || p.Title == "" ||
		r.Header().Get("Cache-Control") != "no-store" || r.Header().Get("Content-Length") != fmt.Sprint(r.Body.Len()) {
		t.Errorf("no problem document: %d %v %s", r.Code, r.Header(), r.Body)
	}
	return p
}

func TestProblems(t *testing.T) {
	var log bytes.Buffer
	e := New(slog.New(slog.NewJSONHandler(&log, nil)))
	e.GET("/v1/ok", func(c echo.Context) error { return c.String(http.StatusOK, "ok") })
	e.POST("/v1/big", func(c echo.Context) error {
		_, err := io.ReadAll(http.MaxBytesReader(c.Response(), c.Request().Body, 10))
		return err
	})
	e.GET("/v1/panic", func(echo.Context) error { panic("hunter2 of the server") })
	e.GET("/v1/fails", func(echo.Context) error { return errors.New("hunter2 in an error") })
	e.GET("/v1/wrapped", func(echo.Context) error {
		p := wire.NewProblem(http.StatusServiceUnavailable, wire.CodeDraining, "bye")
		p.Header = [2]string{"Dialring-Epoch", "42"}
		return fmt.Errorf("on the way: %w", p)
	})
	e.GET("/v1/late", func(c echo.Context) error {
		_ = c.String(http.StatusOK, "half")
		return errors.New("too late to say")
	})
	for _, c := range []struct {
		method, path string
		status       int
		code         wire.Code
	}{
		{"GET", "/nothing", 404, wire.CodeNotFound},
		{"GET", "/", 404, wire.CodeNotFound},
		{"GET", "/v1/ok/more", 404, wire.CodeNotFound},
		{"GET", "/v1/%00", 404, wire.CodeNotFound},
		{"POST", "/v1/ok", 405, wire.CodeMethodNotAllowed},
		{"BREW", "/v1/ok", 405, wire.CodeMethodNotAllowed},
		{"POST", "/v1/big", 413, wire.CodeTooLarge},
		{"GET", "/v1/panic", 500, wire.CodeInternal},
		{"GET", "/v1/fails", 500, wire.CodeInternal},
		{"GET", "/v1/wrapped", 503, wire.CodeDraining},
	} {
		log.Reset()
		w := httptest.NewRecorder()
		r := httptest.NewRequest(c.method, c.path+"?token=query-canary", strings.NewReader(strings.Repeat("x", 11)))
		r.Header.Set("Authorization", "Bearer header-canary")
		e.ServeHTTP(w, r)
		p := problem(t, w)
		if w.Code != c.status || p.Code != c.code {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, w.Code, p.Code, c.status, c.code)
		}
		if s := w.Body.String(); strings.Contains(s, "hunter2") || strings.Contains(s, "goroutine") || strings.Contains(s, ".go:") || strings.Contains(s, "canary") {
			t.Errorf("%s: the answer says too much: %s", c.path, s)
		}
		if strings.Contains(log.String(), "canary") {
			t.Errorf("%s: the log has what the caller sent: %s", c.path, &log)
		}
		if c.status == 500 && (!strings.Contains(log.String(), "hunter2") || strings.Count(log.String(), "\n") > 2) {
			t.Errorf("%s: the log does not say why: %s", c.path, &log)
		}
		if c.status == 405 && !strings.Contains(w.Header().Get("Allow"), "GET") {
			t.Errorf("405 without Allow: %v", w.Header())
		}
		if c.status == 503 && (w.Header().Get("Retry-After") != "1" || w.Header().Get("Dialring-Epoch") != "42") {
			t.Errorf("headers of the problem: %v", w.Header())
		}
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequest("GET", "/v1/late", nil))
	if w.Code != 200 || w.Body.String() != "half" {
		t.Errorf("an error after the answer began: %d %s", w.Code, w.Body)
	}
}

// http.ErrAbortHandler is no mistake but a handler that ends the connection.
func TestAbort(t *testing.T) {
	e := New(discard)
	e.GET("/", func(echo.Context) error { panic(http.ErrAbortHandler) })
	defer func() {
		if r := recover(); r != http.ErrAbortHandler {
			t.Errorf("recovered %v", r)
		}
	}()
	e.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	t.Error("it was answered")
}

// Forwarded headers are anyone's to write.
func TestRealIP(t *testing.T) {
	e := New(discard)
	e.GET("/", func(c echo.Context) error { return c.String(200, c.RealIP()) })
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "192.0.2.1:1"
	r.Header.Set("X-Forwarded-For", "203.0.113.9")
	r.Header.Set("X-Real-IP", "203.0.113.9")
	w := httptest.NewRecorder()
	if e.ServeHTTP(w, r); w.Body.String() != "192.0.2.1" {
		t.Errorf("the address is %s", w.Body)
	}
}

// chunked hides the length of a body.
type chunked struct{ io.Reader }

func TestReadBody(t *testing.T) {
	type got struct {
		body string
		p    *wire.Problem
	}
	results := make(chan got, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, p := ReadBody(r, 10)
		results <- got{string(b), p}
	}))
	defer s.Close()
	for name, c := range map[string]struct {
		body     io.Reader
		encoding string
		want     string
		status   int
	}{
		"none":               {nil, "", "", 0},
		"empty":              {strings.NewReader(""), "", "", 0},
		"small":              {strings.NewReader("hello"), "", "hello", 0},
		"exact":              {strings.NewReader("0123456789"), "", "0123456789", 0},
		"one more":           {strings.NewReader("0123456789x"), "", "", 413},
		"much more":          {strings.NewReader(strings.Repeat("x", 1<<20)), "", "", 413},
		"chunked":            {chunked{strings.NewReader("hello")}, "", "hello", 0},
		"chunked, exact":     {chunked{strings.NewReader("0123456789")}, "", "0123456789", 0},
		"chunked, one more":  {chunked{strings.NewReader("0123456789x")}, "", "", 413},
		"chunked, much more": {chunked{strings.NewReader(strings.Repeat("x", 1<<20))}, "", "", 413},
		"gzip":               {strings.NewReader("x"), "gzip", "", 415},
		"gzip, too large":    {strings.NewReader("0123456789x"), "br", "", 415},
	} {
		r, err := http.NewRequest("POST", s.URL, c.body)
		if err != nil {
			t.Fatal(err)
		}
		if c.encoding != "" {
			r.Header.Set("Content-Encoding", c.encoding)
		}
		if resp, err := http.DefaultTransport.RoundTrip(r); err == nil {
			resp.Body.Close()
		}
		x := await(t, "a body", results)
		status := 0
		if x.p != nil {
			status = x.p.Status
		}
		if x.body != c.want || status != c.status {
			t.Errorf("%s: %q, problem %+v", name, x.body, x.p)
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	// Bodies that end before they should.
	for _, raw := range []string{"Content-Length: 9\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"} {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\n%s", raw)
		_ = conn.(*net.TCPConn).CloseWrite()
		if x := await(t, "a body", results); x.p == nil || x.p.Status != 400 || x.body != "" {
			t.Errorf("%q: %q, problem %+v", raw, x.body, x.p)
		}
		_ = conn.Close()
	}
}

func TestJSON(t *testing.T) {
	for _, n := range []int{2, 2047, 2048, 100_000} {
		body := []byte(`"` + strings.Repeat("x", n-2) + `"`)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = JSON(w, body) }))
		resp, err := http.Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, body) || resp.ContentLength != int64(n) || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%d bytes: %d arrive, length %d, %v", n, len(got), resp.ContentLength, resp.Header)
		}
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		s.Close()
	}
}

func TestHealth(t *testing.T) {
	w := httptest.NewRecorder()
	Healthz(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("healthz: %d %v", w.Code, w.Header())
	}
	var err error
	h := Readyz(func() error { return err })
	for _, c := range []struct {
		err    error
		status int
		body   string
	}{{nil, 200, "ready"}, {errors.New("not in the ring yet"), 503, "not in the ring yet"}, {nil, 200, "ready"}} {
		err = c.err
		w := httptest.NewRecorder()
		h(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != c.status || strings.TrimSpace(w.Body.String()) != c.body || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("readyz: %d %s", w.Code, w.Body)
		}
		if after := w.Header().Get("Retry-After"); (after == "1") != (c.status == 503) {
			t.Errorf("readyz: %d, Retry-After %q", w.Code, after)
		}
	}
}

// Serve ends when its context does: requests under way are answered first, and
// connections that wait for nothing are closed.
func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-release
		}
		_, _ = io.WriteString(w, "answer")
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, h, discard) }()
	idle, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	br := bufio.NewReader(idle)
	if resp, err := http.ReadResponse(br, nil); err != nil {
		t.Fatal(err)
	} else if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + l.Addr().String() + "/slow")
		if err != nil {
			t.Errorf("the request under way: %v", err)
			return
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "answer" {
			t.Errorf("the request under way: %q %v", b, err)
		}
	})
	await(t, "a request", entered)
	cancel()
	_ = idle.SetReadDeadline(time.Now().Add(patience))
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("the idle connection: %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("it ended (%v) with a request under way", err)
	default:
	}
	close(release)
	wg.Wait()
	if err := await(t, "the end", ended); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("it still listens")
	}
	// When the listener breaks, Serve says so.
	broken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = broken.Close()
	if err := Serve(context.Background(), broken, h, discard); err == nil {
		t.Error("a broken listener is no error")
	}
}

// Headers are bounded, and a caller that is slow with them is cut off.
func TestServeLimits(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, http.NotFoundHandler(), discard) }()
	defer func() { cancel(); <-ended }()
	for name, c := range map[string]struct{ send, want string }{
		"large header": {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "HTTP/1.1 431"},
		"slow header":  {"GET / HTTP/1.1\r\nHost: x\r\nX: ", ""},
	} {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(conn, c.send) }()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(conn)
		var timeout net.Error
		if !strings.HasPrefix(string(b), c.want) || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: %.40q %v", name, b, err)
		}
		_ = conn.Close()
	}
}

// An answer that comes before the body was read reaches who still sends it, also where the
// connection ends with the request: it ends in order, not with a reset.
func TestAnswerBeforeBody(t *testing.T) {
	sent := make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-sent
			if r.URL.Path == "/read" {
				_, _ = io.Copy(io.Discard, r.Body)
			}
			WriteProblem(w, wire.NewProblem(http.StatusRequestEntityTooLarge, wire.CodeTooLarge, "no"))
		}), slog.New(slog.DiscardHandler))
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	body, long := strings.Repeat("x", 100<<10), strings.Repeat("x", 600<<10) // more than is read
	for name, request := range map[string]string{
		"closing":           "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 102400\r\n\r\n" + body,
		"closing, in parts": "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n19000\r\n" + body + "\r\n0\r\n\r\n",
		"closing, long":     "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 614400\r\n\r\n" + long,
		"HTTP/1.0":          "POST / HTTP/1.0\r\nHost: x\r\nContent-Length: 102400\r\n\r\n" + body,
		"kept":              "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 102400\r\n\r\n" + body + "POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"read":              "POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 102400\r\n\r\n" + body,
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		first := min(len(request), 110<<10) // it fits the sockets' buffers
		if _, err := io.WriteString(c, request[:first]); err != nil {
			t.Fatal(err)
		}
		rest := make(chan struct{})
		go func() {
			defer close(rest)
			_, _ = io.WriteString(c, request[first:])
		}()
		answers := strings.Count(request, " HTTP/1.")
		for range answers {
			sent <- struct{}{}
		}
		b, err := io.ReadAll(c)
		if err != nil || strings.Count(string(b), " 413 ") != answers {
			t.Errorf("%s: %v, %.300q", name, err, b)
		}
		c.Close()
		<-rest
	}
}
