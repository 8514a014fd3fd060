package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	metaPartition = "dialring.partitions"
	// positionsAge is how long a device's position is kept after it last changed.
	positionsAge = 90 * 24 * time.Hour
	setupTimeout = 5 * time.Second
	setupPause   = 100 * time.Millisecond
	setupMost    = 5 * time.Second
)

func (s *JetStream) stream(p int) string { return s.o.Cluster + "_inbox_" + strconv.Itoa(p) }
func (s *JetStream) positions() string   { return s.o.Cluster + "_positions" }

func (s *JetStream) config(p, partitions int) jetstream.StreamConfig {
	return jetstream.StreamConfig{Name: s.stream(p), Description: "dialring: users' messages", Subjects: []string{fmt.Sprintf("%s.inbox.%d.*", s.o.Cluster, p)},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: jetstream.FileStorage, Replicas: s.replicas(), AllowDirect: true,
		MaxMsgsPerSubject: int64(s.o.Limits.Messages), MaxAge: s.o.Limits.Age, Duplicates: min(s.o.Limits.Window, s.o.Limits.Age),
		Metadata: map[string]string{metaPartition: strconv.Itoa(partitions)}}
}

func (s *JetStream) replicas() int {
	switch {
	case s.o.Replicas > 0:
		return s.o.Replicas
	case s.o.Conn.ConnectedClusterName() != "":
		return 3
	}
	return 1
}

// setup makes what is missing and brings the limits up to date.
func (s *JetStream) setup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	// The first stream says how many there are: that is fixed when it is made.
	partitions := s.o.Partitions
	switch {
	case partitions > 0:
	case s.o.Conn.ConnectedClusterName() != "":
		partitions = 8
	default:
		partitions = 1
	}
	first, err := s.ensure(ctx, s.config(0, partitions))
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(first.Config.Metadata[metaPartition]); err == nil && n > 0 {
		partitions = n
	}
	if s.o.Partitions > 0 && partitions != s.o.Partitions {
		s.o.Log.Warn("the inbox has another number of partitions than DIALRING_INBOX_PARTITIONS says; that is fixed when a cluster is made, and the setting has no effect",
			"event", "inbox_partitions", "partitions", partitions, "setting", s.o.Partitions)
	}
	for p := 1; p < partitions; p++ {
		if _, err := s.ensure(ctx, s.config(p, partitions)); err != nil {
			return err
		}
	}
	positions := jetstream.StreamConfig{Name: s.positions(), Description: "dialring: how far devices have read",
		Subjects: []string{s.o.Cluster + ".position.*.*"}, Storage: jetstream.FileStorage, Replicas: s.replicas(), AllowDirect: true,
		MaxMsgsPerSubject: 1, MaxAge: max(positionsAge, 2*s.o.Limits.Age), Duplicates: time.Second}
	if positions.Replicas == 1 { // not worth a sync of the disk for each, where the server does that
		positions.PersistMode = jetstream.AsyncPersistMode
	}
	for _, c := range []jetstream.StreamConfig{positions, s.groupConfig()} {
		if _, err := s.ensure(ctx, c); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaderOnly = first.Config.Replicas > 1
	if s.partitions == 0 {
		s.partitions = partitions
		close(s.known)
	}
	return nil
}

// ensure makes a stream, or changes the limits of one that is there.
func (s *JetStream) ensure(ctx context.Context, want jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	st, err := s.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		st, err = s.o.Create(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another node was faster
			st, err = s.js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", want.Name, err)
	}
	info := st.CachedInfo()
	have := info.Config
	if have.MaxMsgsPerSubject == want.MaxMsgsPerSubject && have.MaxAge == want.MaxAge && have.Duplicates == want.Duplicates &&
		(s.o.Replicas == 0 || have.Replicas == want.Replicas) {
		return info, nil
	}
	change := have
	change.Metadata = maps.Clone(have.Metadata)
	change.MaxMsgsPerSubject, change.MaxAge, change.Duplicates = want.MaxMsgsPerSubject, want.MaxAge, want.Duplicates
	if s.o.Replicas > 0 {
		change.Replicas = want.Replicas
	}
	s.o.Log.Info("the limits of a stream are changed to what this node was set to", "event", "inbox_limits", "stream", want.Name,
		"messages", want.MaxMsgsPerSubject, "age", want.MaxAge, "window", want.Duplicates, "replicas", change.Replicas)
	if st, err = s.js.UpdateStream(ctx, change); err != nil {
		return nil, fmt.Errorf("stream %s: %w", want.Name, err)
	}
	return st.CachedInfo(), nil
}
