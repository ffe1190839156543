"""Programs that show softattn at work; they use its public interface only."""
