package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// startStorm starts a locator and a node, and a storm of users whose tokens are signed with
// ECDSA, as those of most login services are.
func startStorm(t *testing.T, users int) (*locatorProc, *locateStorm) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	writeFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	l := startNormalLocator(t, "DIALRING_USER_JWT_PUBLIC_KEY_FILE="+file)
	startNormalNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	l.waitReady(t)
	return l, newLocateStorm(t, l.addr, users, func(c jwt.Claims) (string, error) {
		return jwt.NewWithClaims(jwt.SigningMethodES256, c).SignedString(key)
	})
}

// beside asks for health, and pushes, until the storm is over; all of it has to be answered.
func beside(t *testing.T, l *locatorProc, over <-chan struct{}) (health, pushes []time.Duration) {
	for {
		select {
		case <-over:
			return health, pushes
		case <-time.After(50 * time.Millisecond):
		}
		start := time.Now()
		if resp, err := http.Get("http://" + l.addr + "/healthz"); err != nil || resp.StatusCode != 200 {
			t.Errorf("health during a storm of locates: %+v %v", resp, err)
		} else {
			resp.Body.Close()
		}
		health = append(health, time.Since(start))
		start = time.Now()
		if status, b := call(t, "POST", "http://"+l.addr+"/v1/push/nobody?durable=false", "1"); status != 200 {
			t.Errorf("a push during a storm of locates: %d %s", status, b)
		}
		pushes = append(pushes, time.Since(start))
	}
}

// A storm of locates: each is answered, rightly or with 503 and when to come again;
// services and health are served beside it; and then everything is as before.
func TestLocateStorm(t *testing.T) {
	l, storm := startStorm(t, 100)
	storm.run(t, 8, 0, 100*time.Millisecond) // what is made at first, is
	goroutines := scrapeValue(t, l.admin, "go_goroutines")
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { beside(t, l, over) })
	r := storm.run(t, 1500, 0, 2*time.Second)
	close(over)
	wg.Wait()
	t.Log(r)
	for i, w := range r.wrong {
		if i < 10 {
			t.Errorf("an answer in the storm: %s", w)
		}
	}
	if r.served == 0 || r.served+r.refused != r.asked {
		t.Errorf("%v: not all were answered, or nobody was served", r)
	}
	// Nothing has to be done for it to recover.
	eventually(t, "everybody is served again", func() bool {
		return scrapeValue(t, l.admin, "dialring_locates_admitted_share") == 1 || len(storm.run(t, 1, 0, 50*time.Millisecond).wrong) > 0
	})
	if r := storm.run(t, 1, 0, 200*time.Millisecond); r.refused > 0 || len(r.wrong) > 0 || r.served == 0 {
		t.Errorf("after the storm: %v %v", r, r.wrong)
	}
	eventually(t, "nothing is left of the storm", func() bool {
		return scrapeValue(t, l.admin, "dialring_locates_running") == 0 && scrapeValue(t, l.admin, "go_goroutines") < goroutines+20
	})
}

// What a storm of ten times what a locator can do leaves of it. The client has its part of
// the same processors, so less gets there than is asked for: what was not sent is said.
func TestMeasureLocateStorm(t *testing.T) {
	measures(t)
	l, storm := startStorm(t, 1000)
	storm.run(t, 64, 0, time.Second)
	c := storm.run(t, 64, 0, 5*time.Second)
	half := storm.run(t, 500, c.rate()/2, 5*time.Second)
	over := make(chan struct{})
	var wg sync.WaitGroup
	var health, pushes stormed
	wg.Go(func() { health.took, pushes.took = beside(t, l, over) })
	memory := scrapeValue(t, l.admin, "process_resident_memory_bytes")
	ten := storm.run(t, 2000, 10*c.rate(), 20*time.Second)
	share := scrapeValue(t, l.admin, "dialring_locates_admitted_share")
	close(over)
	ended := time.Now()
	var recovered time.Duration
	for {
		r := storm.run(t, 100, c.rate()/2, 200*time.Millisecond)
		if r.refused == 0 && len(r.wrong) == 0 {
			recovered = time.Since(ended) - 200*time.Millisecond
			break
		}
	}
	wg.Wait()
	after := scrapeValue(t, l.admin, "process_resident_memory_bytes")
	t.Logf("capacity, 64 connections: %v", c)
	t.Logf("half of it: %v", half)
	t.Logf("ten times: %v; admitted share at its end %.2f", ten, share)
	t.Logf("served %.2f of capacity; p50 %.1f and p99 %.1f times those at half; refused %.3f of those sent, not sent %.3f of all; beside it: health p99 %v, pushes p99 %v; first 200 ms without a refusal after %v; memory %.0f to %.0f MB",
		ten.rate()/c.rate(), float64(ten.quantile(.5))/float64(half.quantile(.5)), float64(ten.quantile(.99))/float64(half.quantile(.99)),
		float64(ten.refused)/float64(ten.refused+ten.served), float64(ten.unsent)/float64(ten.asked), health.quantile(.99), pushes.quantile(.99), recovered, memory/1e6, after/1e6)
	for _, r := range []*stormed{c, half, ten} {
		for i, w := range r.wrong {
			if i < 10 {
				t.Errorf("an answer that should not be: %s", w)
			}
		}
	}
}
