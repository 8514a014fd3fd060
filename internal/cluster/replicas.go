package cluster

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// In a NATS cluster everything is kept on three servers. If the cluster is the locators' own
// and only two were ever there, a stream is made on those, with a note of how many it is to
// have, and locators raise it when the third has come:
//
//	made with 3 --no place--> made with 2 --a locator looks, there is place--> 3
const (
	usual        = 3
	fewest       = 2
	metaReplicas = "dialring.replicas"
	// raiseEvery is how often locators look.
	raiseEvery = 10 * time.Second
)

// OwnNATS is the name of the NATS cluster that the locators of a cluster embed. Other
// NATS clusters wait for their third server: who may use them may not change streams.
func OwnNATS(cluster string) string { return cluster + "-locators" }

func (c *Conn) ownNATS() bool { return c.nc.ConnectedClusterName() == OwnNATS(c.cluster) }

// usualReplicas is on how many servers something is kept if nobody says it.
func (c *Conn) usualReplicas() int {
	if c.nc.ConnectedClusterName() != "" {
		return usual
	}
	return 1
}

// noPlace tells whether there are fewer servers than replicas.
func noPlace(err error) bool {
	const noPeers = 10005
	var e *jetstream.APIError
	return errors.As(err, &e) && e.ErrorCode == noPeers
}

// CreateStream makes a stream, with fewer replicas for now if servers are missing.
func (c *Conn) CreateStream(ctx context.Context, conf jetstream.StreamConfig) (jetstream.Stream, error) {
	s, err := c.js.CreateStream(ctx, conf)
	if noPlace(err) && conf.Replicas == usual && c.ownNATS() {
		conf.Replicas, conf.Metadata = fewest, short(conf.Metadata)
		s, err = c.js.CreateStream(ctx, conf)
	}
	return s, err
}

func (c *Conn) createBucket(ctx context.Context, conf jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	kv, err := c.js.CreateKeyValue(ctx, conf)
	if noPlace(err) && conf.Replicas == usual && c.ownNATS() {
		conf.Replicas, conf.Metadata = fewest, short(conf.Metadata)
		kv, err = c.js.CreateKeyValue(ctx, conf)
	}
	return kv, err
}

// short is the metadata of a stream that is to have more replicas.
func short(m map[string]string) map[string]string {
	out := map[string]string{metaReplicas: strconv.Itoa(usual)}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// RaiseReplicas gives streams of the cluster the replicas that there were no servers
// for when they were made, until ctx ends. Locators run it.
func RaiseReplicas(ctx context.Context, c *Conn) error {
	t := time.NewTicker(raiseEvery)
	defer t.Stop()
	whole := map[string]bool{} // streams that have what they are to have
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if !c.Up() || !c.ownNATS() {
			continue
		}
		var err error
		if whole, err = c.raise(ctx, whole); err != nil && ctx.Err() == nil {
			c.log.Debug("replicas cannot be raised now", "event", "replicas", "error", err)
		}
	}
}

// raise looks at streams that are not known to be whole, and returns those that are.
// It does not list them with all that is known of them: for that NATS asks each server,
// and waits for those that are dead.
func (c *Conn) raise(ctx context.Context, whole map[string]bool) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, raiseEvery)
	defer cancel()
	list := c.js.StreamNames(ctx)
	var names []string
	for name := range list.Name() {
		if strings.HasPrefix(strings.TrimPrefix(name, "KV_"), c.cluster+"_") {
			names = append(names, name)
		}
	}
	if err := list.Err(); err != nil {
		return whole, err
	}
	now := map[string]bool{}
	for _, name := range names {
		if whole[name] {
			now[name] = true
			continue
		}
		s, err := c.js.Stream(ctx, name)
		if err != nil {
			return now, err
		}
		conf := s.CachedInfo().Config
		want, _ := strconv.Atoi(conf.Metadata[metaReplicas]) // none: it has what it is to have
		if conf.Replicas < want {
			conf.Replicas = want
			if _, err := c.js.UpdateStream(ctx, conf); err != nil {
				return now, err
			}
			c.log.Info("a stream is kept on one more NATS server", "event", "replicas", "stream", name, "replicas", want)
		}
		now[name] = true
	}
	return now, nil
}
