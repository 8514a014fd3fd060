package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// locateStorm asks a locator for users' nodes over many connections, with as little work
// of its own as it can: requests are made before, and answers are looked at, not decoded.
type locateStorm struct {
	addr     string
	requests [][]byte // of a user each
	users    []string
}

// newLocateStorm makes a storm of so many users, whose tokens sign makes.
func newLocateStorm(t *testing.T, addr string, users int, sign func(jwt.Claims) (string, error)) *locateStorm {
	t.Helper()
	s := &locateStorm{addr: addr}
	for i := range users {
		user := fmt.Sprintf("storm-%d", i)
		token, err := sign(jwt.MapClaims{"sub": user, "exp": time.Now().Add(time.Hour).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		s.users = append(s.users, user)
		s.requests = append(s.requests, fmt.Appendf(nil, "POST /v1/locate?device=d HTTP/1.1\r\nHost: l\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\n\r\n", token))
	}
	return s
}

// stormed is what became of the requests of a while.
type stormed struct {
	asked, served, refused, unsent int
	wrong                          []string // answers that should not be
	took                           []time.Duration
	lasted                         time.Duration
}

func (s *stormed) add(o *stormed) {
	s.asked += o.asked
	s.served += o.served
	s.refused += o.refused
	s.unsent += o.unsent
	s.wrong = append(s.wrong, o.wrong...)
	s.took = append(s.took, o.took...)
}

// rate is how many were served a second.
func (s *stormed) rate() float64 { return float64(s.served) / s.lasted.Seconds() }

// quantile is of the time of those served.
func (s *stormed) quantile(q float64) time.Duration {
	if len(s.took) == 0 {
		return 0
	}
	slices.Sort(s.took)
	return s.took[min(len(s.took)-1, int(q*float64(len(s.took))))]
}

func (s *stormed) String() string {
	return fmt.Sprintf("%d asked, %d served (%.0f/s), %d refused, %d not sent since all connections waited; p50 %v p99 %v",
		s.asked, s.served, s.rate(), s.refused, s.unsent, s.quantile(.5).Round(10*time.Microsecond), s.quantile(.99).Round(10*time.Microsecond))
}

// run asks over conns connections for a while. perSecond 0: each asks again as soon as it has
// its answer; else requests come at this rate, whatever becomes of them, and one that finds
// no connection free is not sent.
func (s *locateStorm) run(t *testing.T, conns int, perSecond float64, lasts time.Duration) *stormed {
	t.Helper()
	start := time.Now()
	end := start.Add(lasts)
	var arrivals chan time.Time
	sum := &stormed{}
	if perSecond > 0 {
		arrivals = make(chan time.Time)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var opened sync.WaitGroup
	for i := range conns {
		opened.Add(1)
		wg.Go(func() {
			own := &stormed{}
			defer func() {
				mu.Lock()
				sum.add(own)
				mu.Unlock()
			}()
			c, err := net.DialTimeout("tcp", s.addr, patience)
			opened.Done()
			if err != nil {
				own.wrong = append(own.wrong, err.Error())
				return
			}
			defer c.Close()
			_ = c.SetDeadline(end.Add(patience))
			br := bufio.NewReaderSize(c, 2048)
			for n := i; ; n += conns {
				at := time.Now()
				if arrivals != nil {
					var ok bool
					if at, ok = <-arrivals; !ok {
						return
					}
				} else if at.After(end) {
					return
				}
				k := n % len(s.requests)
				own.asked++
				if err := s.ask(c, br, k, own); err != nil {
					own.wrong = append(own.wrong, err.Error())
					return
				}
				if own.served > len(own.took) {
					own.took = append(own.took, time.Since(at))
				}
			}
		})
	}
	if arrivals != nil {
		opened.Wait()
		start = time.Now()
		end = start.Add(lasts)
		sent := 0
		for now := start; now.Before(end); now = time.Now() {
			for due := int(now.Sub(start).Seconds() * perSecond); sent < due; sent++ {
				select {
				case arrivals <- start.Add(time.Duration(float64(sent) / perSecond * float64(time.Second))):
				default:
					sum.unsent++
				}
			}
			time.Sleep(500 * time.Microsecond)
		}
		close(arrivals)
	}
	wg.Wait()
	sum.lasted = time.Since(start)
	sum.asked += sum.unsent
	return sum
}

// ask asks once. An error is what ends a connection.
func (s *locateStorm) ask(c net.Conn, br *bufio.Reader, k int, into *stormed) error {
	if _, err := c.Write(s.requests[k]); err != nil {
		return err
	}
	line, err := br.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 {
		return fmt.Errorf("not HTTP: %q", line)
	}
	status := string(line[9:12])
	length, after := -1, ""
	for {
		if line, err = br.ReadSlice('\n'); err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := strings.Cut(string(line), ": ")
		switch name {
		case "Content-Length":
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return err
			}
		case "Retry-After":
			after = strings.TrimSpace(value)
		}
	}
	if length < 0 {
		return fmt.Errorf("an answer %s of length %d", status, length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(br, body); err != nil {
		return err
	}
	switch n, _ := strconv.Atoi(after); {
	case status == "200" && bytes.HasPrefix(body, []byte(`{"user":"`+s.users[k]+`",`)) && bytes.Contains(body, []byte(`"ticket":"`)):
		into.served++
	case (status == "503" || status == "429") && n >= 1 && bytes.Contains(body, []byte(`"code":"rate_limited"`)):
		into.refused++
	default:
		into.wrong = append(into.wrong, fmt.Sprintf("%s, Retry-After %q: %.200s", status, after, body))
	}
	return nil
}
