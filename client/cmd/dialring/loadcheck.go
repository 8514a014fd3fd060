package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

// checker knows of each push what became of it. It keeps those that are not settled, so
// its memory is that of what is under way, and of what failed.
//
//	pushed --arrives--> arrived --accepted, or failed--> settled: another arrival is a duplicate
//	   \--accepted--> owed --arrives----------------------^
//	    \               \--never--> lost
//	     \--failed---> maybe --arrives (the answer was lost, not the push)--^
type checker struct {
	mu           sync.Mutex
	last         uint64 // numbers are given from 1
	open         map[uint64]*push
	owed         int // accepted, and not there yet
	twice        int
	misdelivered int // to another user
	strange      int // of no push of this load
	moved        time.Time
}

type push struct {
	user     int
	due      time.Time
	arrived  bool
	answered bool
	owed     bool // accepted with the promise to arrive
}

func newChecker() *checker { return &checker{open: map[uint64]*push{}, moved: time.Now()} }

// begin gives a push to a user its number.
func (c *checker) begin(user int, due time.Time) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	c.open[c.last] = &push{user: user, due: due}
	return c.last
}

// answer takes the answer to a push; owed: it must arrive.
func (c *checker) answer(n uint64, owed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.open[n]
	p.answered = true
	switch {
	case p.arrived:
		delete(c.open, n)
	case owed:
		p.owed = true
		c.owed++
	}
}

// arrive takes a message that came to a user, and returns since when it was due; false: it
// does not count.
func (c *checker) arrive(user int, n uint64) (due time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved = time.Now()
	p := c.open[n]
	switch {
	case n == 0 || n > c.last:
		c.strange++
		return due, false
	case p == nil || p.arrived && p.user == user:
		c.twice++
		return due, false
	case p.user != user:
		c.misdelivered++
		return due, false
	}
	p.arrived = true
	if p.owed {
		c.owed--
	}
	if p.answered {
		delete(c.open, n)
	}
	return p.due, true
}

// missing is how many pushes must still arrive, and for how long nothing came.
func (c *checker) missing() (owed int, quiet time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owed, time.Since(c.moved)
}

// lost lists the pushes that must have arrived and have not, at most so many.
func (c *checker) lost(most int) (numbers []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, p := range c.open {
		if p.owed && !p.arrived && len(numbers) < most {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// letter is a payload of a load.
type letter struct {
	Load string `json:"load"` // which one: there may be messages of others
	N    uint64 `json:"n"`
	Pad  string `json:"pad"`
}

// minPayload has room for the largest number.
const minPayload = 64

func payloadOf(load string, n uint64, size int) json.RawMessage {
	b := fmt.Sprintf(`{"load":%q,"n":%d,"pad":"`, load, n)
	return json.RawMessage(b + strings.Repeat("x", max(0, size-len(b)-2)) + `"}`)
}
